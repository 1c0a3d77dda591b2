import CoreGraphics
import Foundation
import ImageIO

/// A finished image, and what it takes to draw it again.
public struct Picture: Equatable, Sendable {
    /// The side in pixels from left to right.
    public let width: Int
    /// The side in pixels from top to bottom.
    public let height: Int
    /// The pixels row by row from the top, each `0xAARRGGBB`.
    public let colours: [Int32]
    /// What it was drawn from, nothing left open.
    public let recipe: Recipe
    /// How many tokens at the end of the prompt the text encoder had no room for; 0 for most prompts.
    public let unread: Int

    /// The pixels as bytes: red, green, blue and 255 of each.
    public var bytes: Data {
        var data = Data(capacity: 4 * colours.count)
        for colour in colours {
            let bits = UInt32(bitPattern: colour)
            data.append(UInt8(truncatingIfNeeded: bits >> 16))
            data.append(UInt8(truncatingIfNeeded: bits >> 8))
            data.append(UInt8(truncatingIfNeeded: bits))
            data.append(255)
        }
        return data
    }

    /// Returns the image for Core Graphics, in sRGB; nil only if the system has no memory left.
    public func image() -> CGImage? {
        guard let provider = CGDataProvider(data: bytes as CFData), let space = CGColorSpace(name: CGColorSpace.sRGB) else {
            return nil
        }
        return CGImage(
            width: width,
            height: height,
            bitsPerComponent: 8,
            bitsPerPixel: 32,
            bytesPerRow: 4 * width,
            space: space,
            bitmapInfo: CGBitmapInfo(rawValue: CGImageAlphaInfo.noneSkipLast.rawValue),
            provider: provider,
            decode: nil,
            shouldInterpolate: false,
            intent: .defaultIntent
        )
    }

    /// Returns the image as a PNG file; nil only if the system has no memory left.
    public func png() -> Data? {
        let file = NSMutableData()
        let target = CGImageDestinationCreateWithData(file as CFMutableData, "public.png" as CFString, 1, nil)
        guard let image = image(), let target = target else { return nil }
        CGImageDestinationAddImage(target, image, nil)
        return CGImageDestinationFinalize(target) ? file as Data : nil
    }
}

/// What an image is drawn from. The same recipe is the same image, up to the rounding of the hardware.
///
/// As JSON it has the keys of Python's recipes.
public struct Recipe: Encodable, Equatable, Sendable {
    /// What is to be seen.
    public let prompt: String
    /// What is not to be seen.
    public let negativePrompt: String
    /// Any number; the same one gives the same image.
    public let seed: Int64
    /// Which of the images of this seed, from 0.
    public let index: Int
    /// How many steps.
    public let numSteps: Int
    /// How closely the prompt is followed, from 0 to 100.
    public let guidanceScale: Float
    /// One of the bundle's samplers.
    public let sampler: String
    /// The name of the model.
    public let model: String
    /// What tells its weights from others.
    public let weights: String
    /// How they were quantized.
    public let quantize: String
    /// Width of the image in pixels.
    public let width: Int
    /// Height of the image in pixels.
    public let height: Int

    private enum CodingKeys: String, CodingKey {
        case prompt, seed, index, sampler, model, weights, quantize, width, height
        case negativePrompt = "negative_prompt"
        case numSteps = "num_steps"
        case guidanceScale = "guidance_scale"
    }

    /// The recipe as JSON, one line for each entry.
    public var json: String {
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.prettyPrinted, .sortedKeys]
        guard let data = try? encoder.encode(self) else { return "" }
        return String(decoding: data, as: UTF8.self)
    }
}

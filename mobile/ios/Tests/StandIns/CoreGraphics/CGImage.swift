import Foundation

public typealias CFData = Data
public typealias CFMutableData = NSMutableData
public typealias CFString = String

public final class CGDataProvider {
    public init?(data: CFData) {}
}

public final class CGColorSpace {
    public static let sRGB = "sRGB"

    public init?(name: CFString) {}
}

public struct CGBitmapInfo {
    public init(rawValue: UInt32) {}
}

public enum CGImageAlphaInfo: UInt32 {
    case noneSkipLast = 5
}

public enum CGColorRenderingIntent {
    case defaultIntent
}

/// Stands in for Core Graphics': it knows its size and nothing else.
public final class CGImage {
    public let width: Int
    public let height: Int

    public init?(
        width: Int,
        height: Int,
        bitsPerComponent: Int,
        bitsPerPixel: Int,
        bytesPerRow: Int,
        space: CGColorSpace,
        bitmapInfo: CGBitmapInfo,
        provider: CGDataProvider,
        decode: UnsafePointer<Double>?,
        shouldInterpolate: Bool,
        intent: CGColorRenderingIntent
    ) {
        self.width = width
        self.height = height
    }
}

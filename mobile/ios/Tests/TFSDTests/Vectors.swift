import XCTest

@testable import TFSD

/// The files of `mobile/vectors`, and the bundle that the tests are run with.
enum Vectors {
    static let folder = URL(fileURLWithPath: #filePath)
        .deletingLastPathComponent()  // TFSDTests
        .deletingLastPathComponent()  // Tests
        .deletingLastPathComponent()  // ios
        .deletingLastPathComponent()  // mobile
        .appendingPathComponent("vectors")

    static func data(_ name: String) throws -> Data {
        try Data(contentsOf: folder.appendingPathComponent(name))
    }

    /// Returns a bundle of `tiny`, which is not in the repository.
    static func bundle() throws -> DeviceBundle {
        let path = ProcessInfo.processInfo.environment["TFSD_BUNDLE"]
        let help = "Set TFSD_BUNDLE to a folder that `tfsd export tflite --model tiny` wrote."
        return try DeviceBundle(URL(fileURLWithPath: XCTUnwrap(path, help)))
    }
}

/// A reference prompt of `tokens.json`.
struct TokenCase: Decodable {
    let text: String
    let ids: [Int32]
    let guessed: Bool
    let idsWithoutFtfy: [Int32]?

    enum CodingKeys: String, CodingKey {
        case text, ids, guessed
        case idsWithoutFtfy = "ids_without_ftfy"
    }
}

/// One of the generations of `generation.json`.
struct Generation: Decodable {
    let prompt: String
    let negativePrompt: String
    let seed: Int64
    let index: Int
    let sampler: String
    let numSteps: Int
    let guidanceScale: Float
    let tokens: [[Int32]]
    let count: Int
    let initScale: Float
    let first: Data
    let latents: [Data]

    enum CodingKeys: String, CodingKey {
        case prompt, seed, index, sampler, tokens, count, first, latents
        case negativePrompt = "negative_prompt"
        case numSteps = "num_steps"
        case guidanceScale = "guidance_scale"
        case initScale = "init_scale"
    }

    static func all() throws -> [Generation] {
        try JSONDecoder().decode([Generation].self, from: Vectors.data("generation.json"))
    }
}

/// Returns the float32 values in bytes, little endian as all of Apple's processors.
func floats(_ bytes: Data) -> Tensor {
    let values = bytes.withUnsafeBytes { raw in
        (0..<raw.count / 4).map { raw.loadUnaligned(fromByteOffset: 4 * $0, as: Float.self) }
    }
    return .float32(values)
}

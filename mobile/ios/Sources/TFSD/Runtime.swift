import Foundation

/// One input or output of a signature, as the bundle's manifest describes it.
public struct TensorInfo: Equatable, Sendable {
    /// `int32` or `float32`; other types do not occur in a bundle.
    public let dtype: String
    /// The dimensions, all known; empty for a scalar.
    public let shape: [Int]

    /// The number of values: the product of `shape`.
    public var size: Int { shape.reduce(1, *) }
}

/// What one signature of a model file takes and gives, by name.
public struct Signature: Equatable, Sendable {
    /// What it takes.
    public let inputs: [String: TensorInfo]
    /// What it gives.
    public let outputs: [String: TensorInfo]
}

/// The values of a tensor, flat and row-major.
public enum Tensor: Equatable, Sendable {
    /// Whole numbers: tokens, counters, colours.
    case int32([Int32])
    /// Everything else.
    case float32([Float])
}

/// What runs the model files of a bundle: LiteRT on a phone, something else in a test.
public protocol Runtime: AnyObject {
    /// Opens the model `file`, the `part` (`sampling`, `text_encoder`, `denoiser` or `decoder`) of a bundle.
    ///
    /// The file is to be mapped and not read, as the denoiser of a full-size model has gigabytes. `accelerators` is what the
    /// manifest says that it may run on, `gpu` or `cpu`, the fastest first, and `signatures` what it says of each of its
    /// signatures. Whoever opened a model closes it.
    ///
    /// - Throws: any error, if the runtime cannot load the file.
    func open(_ file: URL, part: String, accelerators: [String], signatures: [String: Signature]) throws -> OpenModel
}

/// An open model file. One thread at a time may use it.
public protocol OpenModel: AnyObject {
    /// Runs one signature with all its inputs, by name, and returns its outputs.
    ///
    /// - Throws: any error, if the runtime cannot run it.
    func run(_ signature: String, _ inputs: [String: Tensor]) throws -> [String: Tensor]

    /// Gives back the memory. The model cannot be used any more.
    func close()
}

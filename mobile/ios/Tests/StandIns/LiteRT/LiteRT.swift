import Foundation

// What the package uses of LiteRT 2.3, so that its types are checked where LiteRT is not. It runs nothing.

public enum LiteRtError: Error {
    case notFound, missingInputTensor
}

public enum Accelerator: Int32 {
    case none, cpu, gpu, npu
}

public final class Environment {
    public init() throws {}

    public func hasGpuEnvironment() -> Bool { false }
}

public protocol ConcreteOptions {}

public final class CpuOptions: ConcreteOptions {
    public init() throws {}

    public func setNumThreads(_ numThreads: Int) throws {}
}

public final class Options {
    public init() throws {}

    public func setHardwareAccelerators(_ accelerators: Set<Accelerator>) throws {}

    public func addConcreteOptions(_ concreteOptions: ConcreteOptions) throws {}
}

public final class TensorBuffer {
    public func write<T>(_ data: [T]) throws {}

    public func write(_ data: Data) throws {}

    public func read() throws -> Data { Data() }

    public func read<T>() throws -> [T] { [] }
}

public final class CompiledModel {
    public init(filePath: String, environment: Environment, options: Options? = nil) throws {}

    public func isFullyAccelerated() throws -> Bool { true }

    public func signatureKeys() throws -> [String] { [] }

    public func inputCount(signatureIndex: Int = 0) throws -> Int { 0 }

    public func outputCount(signatureIndex: Int = 0) throws -> Int { 0 }

    public func inputName(inputIndex: Int, signatureIndex: Int = 0) throws -> String { "" }

    public func outputName(outputIndex: Int, signatureIndex: Int = 0) throws -> String { "" }

    public func createInputBuffers(signatureIndex: Int = 0) throws -> [TensorBuffer] { [] }

    public func createOutputBuffers(signatureIndex: Int = 0) throws -> [TensorBuffer] { [] }

    public func run(
        inputs: [TensorBuffer], outputs: [TensorBuffer], options: Options? = nil, signatureIndex: Int = 0
    ) throws {}
}

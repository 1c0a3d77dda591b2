import Foundation
import LiteRT
import TFSD

/// Runs models with LiteRT, which maps their files.
///
/// A part runs on the GPU by Metal if that is asked for and the bundle says that it may; the CPU does what the GPU cannot, and
/// everything if the GPU refuses a file. `sampling` always runs on the CPU, so that seeds give the same noise on all phones,
/// and so does the text encoder, which takes no time worth the while.
public final class LiteRTRuntime: Runtime {
    /// What runs the parts that may run there.
    public enum Accelerator: String, CaseIterable, Sendable {
        /// Metal, with the CPU for what it cannot do.
        case gpu
        /// XNNPACK.
        case cpu
    }

    private let environment: Environment
    private let accelerator: Accelerator
    private let threads: Int
    private let onOpen: @Sendable (_ part: String, _ used: Accelerator, _ isWhole: Bool) -> Void

    /// Starts LiteRT.
    ///
    /// - Parameters:
    ///   - threads: of the CPU.
    ///   - onOpen: told of each part that is opened, what runs it, and whether that runs all of it; called on the thread that
    ///     draws.
    /// - Throws: LiteRT's error, if it cannot be.
    public init(
        accelerator: Accelerator = .gpu,
        threads: Int = 4,
        onOpen: @escaping @Sendable (_ part: String, _ used: Accelerator, _ isWhole: Bool) -> Void = { _, _, _ in }
    ) throws {
        environment = try Environment()
        self.accelerator = accelerator
        self.threads = threads
        self.onOpen = onOpen
    }

    public func open(
        _ file: URL, part: String, accelerators: [String], signatures: [String: Signature]
    ) throws -> OpenModel {
        let wanted = accelerators.contains(accelerator.rawValue) ? accelerator : .cpu
        var used = wanted
        let compiled: CompiledModel
        do {
            compiled = try compile(file, for: wanted)
        } catch {
            guard wanted == .gpu else { throw error }
            compiled = try compile(file, for: .cpu)
            used = .cpu
        }
        if used == .gpu && !environment.hasGpuEnvironment() {
            used = .cpu  // LiteRT silently runs on the CPU what it was to run on a GPU that is not there
        }
        onOpen(part, used, (try? compiled.isFullyAccelerated()) ?? false)
        return try LiteRTModel(compiled, environment: environment, signatures: signatures)
    }

    private func compile(_ file: URL, for accelerator: Accelerator) throws -> CompiledModel {
        let options = try Options()
        try options.setHardwareAccelerators(accelerator == .gpu ? [.gpu, .cpu] : [.cpu])
        let cpu = try CpuOptions()
        try cpu.setNumThreads(threads)
        try options.addConcreteOptions(cpu)
        return try CompiledModel(filePath: file.path, environment: environment, options: options)
    }
}

/// An open file with the buffers of its signatures, which LiteRT knows by number.
private final class LiteRTModel: OpenModel {
    private final class Buffers {
        let index: Int
        let inputNames: [String]
        let outputNames: [String]
        let inputs: [TensorBuffer]
        let outputs: [TensorBuffer]

        init(_ compiled: CompiledModel, signature index: Int) throws {
            self.index = index
            inputNames = try (0..<compiled.inputCount(signatureIndex: index)).map {
                try compiled.inputName(inputIndex: $0, signatureIndex: index)
            }
            outputNames = try (0..<compiled.outputCount(signatureIndex: index)).map {
                try compiled.outputName(outputIndex: $0, signatureIndex: index)
            }
            inputs = try compiled.createInputBuffers(signatureIndex: index)
            outputs = try compiled.createOutputBuffers(signatureIndex: index)
        }
    }

    private let environment: Environment  // buffers do not keep it
    private let signatures: [String: Signature]
    private let keys: [String]
    private var compiled: CompiledModel?
    private var buffers: [String: Buffers] = [:]

    init(_ compiled: CompiledModel, environment: Environment, signatures: [String: Signature]) throws {
        self.compiled = compiled
        self.environment = environment
        self.signatures = signatures
        keys = try compiled.signatureKeys()
    }

    deinit {
        close()
    }

    func run(_ signature: String, _ inputs: [String: Tensor]) throws -> [String: Tensor] {
        guard let compiled = compiled, let known = signatures[signature], let index = keys.firstIndex(of: signature) else {
            throw LiteRtError.notFound
        }
        let own = try buffers[signature] ?? Buffers(compiled, signature: index)
        buffers[signature] = own
        for (name, buffer) in zip(own.inputNames, own.inputs) {
            switch inputs[name] {
            case .int32(let values)?: try buffer.write(values)
            case .float32(let values)?: try buffer.write(values)
            case nil: throw LiteRtError.missingInputTensor
            }
        }
        try compiled.run(inputs: own.inputs, outputs: own.outputs, signatureIndex: own.index)
        var outputs: [String: Tensor] = [:]
        for (name, buffer) in zip(own.outputNames, own.outputs) {
            if known.outputs[name]?.dtype == "int32" {
                let values: [Int32] = try buffer.read()
                outputs[name] = .int32(values)
            } else {
                let values: [Float] = try buffer.read()
                outputs[name] = .float32(values)
            }
        }
        return outputs
    }

    func close() {
        buffers = [:]  // before the model and the environment
        compiled = nil
    }
}

import Foundation

/// Draws images of prompts with a bundle: tokens, then plan, noise and step again and again, then the image's colours.
///
/// All arithmetic is in the model files. One of them is open at a time, beside the small one that holds plans and noise: first
/// the text encoder, then the denoiser, then the decoder. Images are drawn one after the other on a separate queue, which
/// alone touches the runtime and what is kept here.
public final class StableDiffusion: @unchecked Sendable {
    /// What images are drawn with.
    public let bundle: DeviceBundle

    private static let historyLength = 4  // earlier values that the signature `step` takes, newest first
    private static let highestGuidance: Float = 100

    private let runtime: Runtime
    private let availableMemory: () -> Int64
    private let queue = DispatchQueue(label: "dev.tfsd.draw", qos: .userInitiated)
    private var tokenizer: Tokenizer?

    /// Reads nothing yet: the first image does.
    ///
    /// - Parameters:
    ///   - runtime: what runs the model files; it must not be used by others.
    ///   - availableMemory: the bytes that are free, asked before each file is opened.
    public init(_ bundle: DeviceBundle, runtime: Runtime, availableMemory: @escaping () -> Int64 = Memory.available) {
        self.bundle = bundle
        self.runtime = runtime
        self.availableMemory = availableMemory
    }

    /// Returns an image of a prompt: for the same arguments that of Python, up to the rounding of the hardware.
    ///
    /// Takes seconds to minutes. Cancelling the task stops it after the step under way.
    ///
    /// - Parameters:
    ///   - negativePrompt: what the image should not show.
    ///   - seed: any number; the same one gives the same image. Without one, it is drawn; the recipe tells which.
    ///   - index: which of the images of this seed, from 0: others of a batch in Python.
    ///   - numSteps: from 1 to `bundle.maxSteps`; nil for the bundle's default.
    ///   - guidanceScale: how closely the prompt is followed, from 0 to 100; nil for the bundle's default.
    ///   - sampler: one of `bundle.samplers`, or another name of one; nil for the bundle's default.
    ///   - progress: called after each step, on a thread of its own, with the steps done and all steps; false stops.
    /// - Throws: `TFSDError` for an argument that does not fit, too little memory, a file that cannot be run or computes what is
    ///   not finite, or if `progress` stopped it; `CancellationError` if the task was cancelled.
    public func textToImage(
        _ prompt: String,
        negativePrompt: String = "",
        seed: Int64? = nil,
        index: Int = 0,
        numSteps: Int? = nil,
        guidanceScale: Float? = nil,
        sampler: String? = nil,
        progress: @escaping @Sendable (_ done: Int, _ steps: Int) -> Bool = { _, _ in true }
    ) async throws -> Picture {
        let wanted = sampler ?? bundle.defaults.sampler
        let recipe = Recipe(
            prompt: prompt,
            negativePrompt: negativePrompt,
            seed: seed ?? Int64.random(in: 0..<bundle.seedPeriod),
            index: index,
            numSteps: numSteps ?? bundle.defaults.numSteps,
            guidanceScale: guidanceScale ?? bundle.defaults.guidanceScale,
            sampler: bundle.findSampler(wanted) ?? wanted,
            model: bundle.name,
            weights: bundle.weights,
            quantize: bundle.quantize,
            width: bundle.width,
            height: bundle.height
        )
        try check(recipe)
        let stop = Flag()
        return try await withTaskCancellationHandler {
            try await withCheckedThrowingContinuation { (continuation: CheckedContinuation<Picture, Error>) in
                queue.async {
                    let result = Result<Picture, Error> {
                        try self.draw(recipe) { done, steps in
                            if stop.isSet {
                                throw CancellationError()
                            }
                            if done > 0 && !progress(done, steps) {
                                throw TFSDError("cancelled", ["done": "\(done)", "steps": "\(steps)"])
                            }
                        }
                    }
                    continuation.resume(with: result)
                }
            }
        } onCancel: {
            stop.set()
        }
    }

    private func check(_ recipe: Recipe) throws {
        try requireRange("num_steps", recipe.numSteps, 1...max(1, bundle.maxSteps))
        guard bundle.samplers.contains(recipe.sampler) else {
            let names = bundle.samplers.joined(separator: ", ")
            throw TFSDError("sampler", ["names": names, "value": recipe.sampler])
        }
        guard (0...Self.highestGuidance).contains(recipe.guidanceScale) else {  // false for NaN, too
            throw TFSDError("guidance", ["high": "\(Int(Self.highestGuidance))", "value": "\(recipe.guidanceScale)"])
        }
        try requireRange("index", recipe.index, 0...bundle.maxIndex)
    }

    private func requireRange(_ name: String, _ value: Int, _ range: ClosedRange<Int>) throws {
        guard range.contains(value) else {
            let bounds = ["low": "\(range.lowerBound)", "high": "\(range.upperBound)"]
            throw TFSDError("range", bounds.merging(["name": name, "value": "\(value)"]) { old, _ in old })
        }
    }

    // MARK: On the queue

    /// Returns the image; `proceed` is called before all steps and after each, and throws to stop.
    private func draw(_ recipe: Recipe, proceed: (Int, Int) throws -> Void) throws -> Picture {
        try proceed(0, 0)
        let tokenizer = try self.tokenizer ?? Tokenizer(bundle.tokenizerFile, spec: bundle.tokenizer)
        self.tokenizer = tokenizer
        let ids = try tokenizer.encode(recipe.prompt)
        let negativeIDs = try tokenizer.encode(recipe.negativePrompt, name: "negative_prompt")
        let context = try encode(tokenizer.pad(negativeIDs) + tokenizer.pad(ids))
        let latents = try sample(context, recipe, proceed: proceed)
        return Picture(
            width: bundle.width,
            height: bundle.height,
            colours: try decode(latents),
            recipe: recipe,
            unread: max(0, ids.count - bundle.tokenizer.length)
        )
    }

    /// Returns the context of tokens: the negative prompt's, then the prompt's.
    private func encode(_ tokens: [Int32]) throws -> Tensor {
        let encoder = try open("text_encoder")
        defer { encoder.close() }
        return try encoder.run("encode", ["tokens": .int32(tokens)]).tensor("context")
    }

    /// Returns the latents after all steps.
    private func sample(_ context: Tensor, _ recipe: Recipe, proceed: (Int, Int) throws -> Void) throws -> Tensor {
        let sampling = try open("sampling")
        defer { sampling.close() }
        let denoiser = try open("denoiser")
        defer { denoiser.close() }
        let sampler = bundle.samplers.firstIndex(of: recipe.sampler) ?? 0
        let plan: [String: Tensor] = ["sampler": .number(sampler), "num_steps": .number(recipe.numSteps)]
        let drawn: [String: Tensor] = ["seed": .number(effectiveSeed(recipe.seed)), "index": .number(recipe.index)]

        func row(_ step: Int) throws -> Outputs {
            try sampling.run("plan", plan.merging(["step": .number(step)]) { old, _ in old })
        }
        func noise(_ stream: Int, scale: Tensor) throws -> Tensor {
            let given = drawn.merging(["stream": .number(stream), "scale": scale]) { old, _ in old }
            return try sampling.run("noise", given).tensor("noise")
        }

        let first = try row(0)
        let count = Int(try first.wholeNumbers("count")[0])
        var latents = try noise(0, scale: first.tensor("init_scale"))
        let zeros = Tensor.float32([Float](repeating: 0, count: bundle.latents.reduce(1, *)))
        var history = [Tensor](repeating: zeros, count: Self.historyLength)
        for step in 0..<max(0, count) {
            var given = try step == 0 ? first.values : row(step).values
            given["latents"] = latents
            given["context"] = context
            given["guidance_scale"] = .float32([recipe.guidanceScale])
            given["noise"] = try noise(step + 1, scale: .float32([1]))
            for (i, past) in history.enumerated() {
                given["history\(i)"] = past
            }
            let moved = try denoiser.run("step", given)
            latents = try moved.tensor("latents")
            guard latents.isFinite else {
                throw TFSDError("not_finite", ["done": "\(step + 1)", "steps": "\(count)"])
            }
            history.insert(try moved.tensor("history"), at: 0)
            history.removeLast()
            try proceed(step + 1, count)
        }
        return latents
    }

    private func decode(_ latents: Tensor) throws -> [Int32] {
        let decoder = try open("decoder")
        defer { decoder.close() }
        return try decoder.run("decode", ["latents": latents]).wholeNumbers("colours")
    }

    /// Returns the seed that any number stands for, from 0.
    private func effectiveSeed(_ seed: Int64) -> Int {
        let rest = seed % bundle.seedPeriod
        return Int(rest < 0 ? rest + bundle.seedPeriod : rest)
    }

    /// Opens a part, if there is memory for it.
    private func open(_ name: String) throws -> Opened {
        guard let part = bundle.parts[name] else {
            throw TFSDError("part", ["file": bundle.folder.path, "part": name])
        }
        let free = availableMemory()
        guard part.memory <= free else {
            throw TFSDError("memory", ["part": name, "needed": Messages.size(part.memory), "free": Messages.size(free)])
        }
        do {
            let model = try runtime.open(
                part.file, part: name, accelerators: part.accelerators, signatures: part.signatures)
            return Opened(name: name, part: part, model: model)
        } catch {
            throw TFSDError("load", ["file": part.file.path, "reason": "\(error)"])
        }
    }
}

/// An open part that is given exactly the inputs that the manifest says its signatures take.
private struct Opened {
    let name: String
    let part: DeviceBundle.Part
    let model: OpenModel

    func run(_ signature: String, _ given: [String: Tensor]) throws -> Outputs {
        let wanted = part.signatures[signature]?.inputs ?? [:]
        let failure = { (reason: String) in
            TFSDError("run", ["part": name, "signature": signature, "reason": reason])
        }
        do {
            return Outputs(values: try model.run(signature, given.filter { wanted[$0.key] != nil }), failure: failure)
        } catch {
            throw failure("\(error)")
        }
    }

    func close() {
        model.close()
    }
}

/// What a signature gave.
private struct Outputs {
    let values: [String: Tensor]
    let failure: (String) -> TFSDError

    func tensor(_ name: String) throws -> Tensor {
        guard let value = values[name] else { throw failure("It gives no \(name).") }
        return value
    }

    func wholeNumbers(_ name: String) throws -> [Int32] {
        guard case .int32(let numbers) = try tensor(name), !numbers.isEmpty else {
            throw failure("Its \(name) is not int32.")
        }
        return numbers
    }
}

extension Tensor {
    /// Whether no number is NaN or infinite.
    fileprivate var isFinite: Bool {
        guard case .float32(let numbers) = self else { return true }
        return numbers.allSatisfy { $0.isFinite }
    }

    /// Returns a tensor of one whole number.
    fileprivate static func number(_ value: Int) -> Tensor {
        .int32([Int32(clamping: value)])
    }
}

/// A mark that one thread sets and another one reads.
private final class Flag: @unchecked Sendable {
    private let lock = NSLock()
    private var value = false

    var isSet: Bool {
        lock.lock()
        defer { lock.unlock() }
        return value
    }

    func set() {
        lock.lock()
        defer { lock.unlock() }
        value = true
    }
}

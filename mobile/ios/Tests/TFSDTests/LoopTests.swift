import XCTest

@testable import TFSD

final class LoopTests: XCTestCase {
    private func draw(
        _ generation: Generation, _ runtime: ScriptedRuntime, progress: @escaping @Sendable (Int, Int) -> Bool = { _, _ in true }
    ) async throws -> Picture {
        try await StableDiffusion(Vectors.bundle(), runtime: runtime).textToImage(
            generation.prompt,
            negativePrompt: generation.negativePrompt,
            seed: generation.seed,
            index: generation.index,
            numSteps: generation.numSteps,
            guidanceScale: generation.guidanceScale,
            sampler: generation.sampler,
            progress: progress
        )
    }

    func testTheLoopGivesEverySignatureWhatPythonGivesIt() async throws {
        for generation in try Generation.all() {
            let runtime = ScriptedRuntime(generation)
            let told = Told()
            let picture = try await draw(generation, runtime) { done, steps in
                told.append([done, steps])
                return true
            }
            XCTAssertEqual(runtime.complaints, [])
            XCTAssertEqual(runtime.opened, ["text_encoder", "sampling", "denoiser", "decoder"])
            XCTAssertEqual(runtime.openCount, 0)
            XCTAssertEqual(runtime.streams, Array(0...Int32(generation.count)))
            XCTAssertEqual(told.values, (1...generation.count).map { [$0, generation.count] })
            XCTAssertEqual(picture.colours, ScriptedRuntime.colours)
            XCTAssertEqual(picture.recipe.seed, generation.seed)
            XCTAssertEqual(Array(picture.bytes.prefix(4)), [0x12, 0x34, 0x56, 0xFF])
            XCTAssertEqual(picture.image()?.width, 128)
        }
    }

    func testARuntimeIsToldWhatAPartMayRunOn() async throws {
        let generation = try XCTUnwrap(Generation.all().first)
        let runtime = ScriptedRuntime(generation)
        _ = try await draw(generation, runtime)
        let wanted = [
            "text_encoder": ["cpu"], "sampling": ["cpu"], "denoiser": ["gpu", "cpu"], "decoder": ["gpu", "cpu"],
        ]
        XCTAssertEqual(runtime.accelerators, wanted)
    }

    func testSamplersHaveTheirNamesInOtherPrograms() throws {
        let bundle = try Vectors.bundle()
        for (name, wanted) in ["Euler a": "euler_ancestral", "DPM++ 2M Karras": "dpmpp_2m_karras", "ddim": "ddim"] {
            XCTAssertEqual(bundle.findSampler(name), wanted)
            XCTAssertEqual(bundle.findSampler(name.uppercased()), wanted)
        }
        XCTAssertNil(bundle.findSampler("fancy"))
    }

    func testLatentsThatAreNotFiniteAreAnErrorAndEverythingIsClosed() async throws {
        let generation = try XCTUnwrap(Generation.all().first)
        for damage in [Float.nan, -Float.infinity] {
            let runtime = ScriptedRuntime(generation)
            runtime.damage = damage
            do {
                _ = try await draw(generation, runtime)
                XCTFail("It was not refused.")
            } catch let error as TFSDError {
                XCTAssertEqual(error.id, "not_finite")
                XCTAssertEqual(error.values, ["done": "1", "steps": "\(generation.count)"])
            }
            XCTAssertEqual(runtime.openCount, 0)
        }
    }

    func testSeedsStandForTheSameEverywhere() async throws {
        struct Seeds: Decodable {
            struct One: Decodable {
                let seed: String
                let effective: Int32
            }
            let seeds: [One]
        }
        let generation = try XCTUnwrap(Generation.all().first)
        let seeds = try JSONDecoder().decode(Seeds.self, from: Vectors.data("noise.json")).seeds
        let runtime = ScriptedRuntime(generation)
        let model = try StableDiffusion(Vectors.bundle(), runtime: runtime)
        for one in seeds {
            runtime.seed = one.effective
            _ = try await model.textToImage(
                generation.prompt, negativePrompt: generation.negativePrompt, seed: XCTUnwrap(Int64(one.seed)),
                numSteps: generation.numSteps, guidanceScale: generation.guidanceScale, sampler: generation.sampler)
        }
        XCTAssertEqual(runtime.complaints, [])
        XCTAssertGreaterThan(runtime.streams.count, seeds.count)
    }

    func testProgressStopsTheLoopAndClosesEverything() async throws {
        let generation = try XCTUnwrap(Generation.all().first)
        let runtime = ScriptedRuntime(generation)
        do {
            _ = try await draw(generation, runtime) { done, _ in done < 2 }
            XCTFail("It was not stopped.")
        } catch let error as TFSDError {
            XCTAssertEqual(error.errorDescription, "Cancelled after 2 of \(generation.count) steps.")
        }
        XCTAssertEqual(runtime.openCount, 0)
    }

    func testCancellingTheTaskStopsTheLoop() async throws {
        let generation = try XCTUnwrap(Generation.all().first)
        let runtime = ScriptedRuntime(generation)
        let model = try StableDiffusion(Vectors.bundle(), runtime: runtime)
        let task = Task {
            try await model.textToImage(generation.prompt) { _, _ in
                Thread.sleep(forTimeInterval: 0.2)
                return true
            }
        }
        task.cancel()
        do {
            _ = try await task.value
            XCTFail("It was not stopped.")
        } catch is CancellationError {
            XCTAssertEqual(runtime.openCount, 0)
        }
    }
}

/// What a callback was told, from whatever thread.
private final class Told: @unchecked Sendable {
    private let lock = NSLock()
    private var list: [[Int]] = []

    var values: [[Int]] {
        lock.lock()
        defer { lock.unlock() }
        return list
    }

    func append(_ value: [Int]) {
        lock.lock()
        defer { lock.unlock() }
        list.append(value)
    }
}

/// Answers as Python's models did in a recorded generation, and notes what it should not have been given.
private final class ScriptedRuntime: Runtime {
    static let colours = [Int32](repeating: Int32(bitPattern: 0xFF12_3456), count: 128 * 128)

    let generation: Generation
    var seed: Int32?
    var opened: [String] = []
    var accelerators: [String: [String]] = [:]
    var damage: Float?  // takes the place of latents
    var openCount = 0
    var streams: [Int32] = []
    var complaints: [String] = []

    init(_ generation: Generation) {
        self.generation = generation
    }

    func open(_ file: URL, part: String, accelerators: [String], signatures: [String: Signature]) throws -> OpenModel {
        opened.append(part)
        self.accelerators[part] = accelerators
        openCount += 1
        return ScriptedModel(self)
    }

    func expect(_ given: Tensor?, _ wanted: Tensor, _ what: String) {
        if given != wanted {
            complaints.append(what)
        }
    }
}

private final class ScriptedModel: OpenModel {
    struct Unknown: Error {}

    private let runtime: ScriptedRuntime

    init(_ runtime: ScriptedRuntime) {
        self.runtime = runtime
    }

    func close() {
        runtime.openCount -= 1
    }

    func run(_ signature: String, _ inputs: [String: Tensor]) throws -> [String: Tensor] {
        let generation = runtime.generation
        switch signature {
        case "encode":
            runtime.expect(inputs["tokens"], .int32(generation.tokens.flatMap { $0 }), "tokens")
            return ["context": .float32([1, 2])]
        case "plan":
            guard case .int32(let step)? = inputs["step"] else { throw Unknown() }
            runtime.expect(inputs["num_steps"], .int32([Int32(generation.numSteps)]), "num_steps")
            let row = Tensor.float32([Float(step[0])])
            let count = Tensor.int32([Int32(generation.count)])
            let scale = Tensor.float32([generation.initScale])
            return ["row": row, "timestep_features": row, "count": count, "init_scale": scale]
        case "noise":
            guard case .int32(let stream)? = inputs["stream"] else { throw Unknown() }
            runtime.streams.append(stream[0])
            if let seed = runtime.seed {
                runtime.expect(inputs["seed"], .int32([seed]), "seed")
            } else {
                runtime.expect(inputs["index"], .int32([Int32(generation.index)]), "index")
            }
            runtime.expect(inputs["scale"], .float32([stream[0] == 0 ? generation.initScale : 1]), "scale")
            return ["noise": stream[0] == 0 ? floats(generation.first) : .float32([Float(stream[0])])]
        case "step":
            guard case .float32(let row)? = inputs["row"] else { throw Unknown() }
            return step(Int(row[0]), inputs)
        case "decode":
            runtime.expect(inputs["latents"], floats(generation.latents[generation.count - 1]), "last latents")
            return ["colours": .int32(ScriptedRuntime.colours)]
        default:
            throw Unknown()
        }
    }

    private func step(_ i: Int, _ inputs: [String: Tensor]) -> [String: Tensor] {
        let generation = runtime.generation
        let before = i == 0 ? generation.first : generation.latents[i - 1]
        runtime.expect(inputs["latents"], floats(before), "latents of step \(i)")
        runtime.expect(inputs["noise"], .float32([Float(i + 1)]), "noise of step \(i)")
        runtime.expect(inputs["context"], .float32([1, 2]), "context")
        runtime.expect(inputs["guidance_scale"], .float32([generation.guidanceScale]), "guidance scale")
        for age in 0..<4 {
            let zeros = [Float](repeating: 0, count: before.count / 4)
            let wanted: Tensor = age < i ? .float32([Float(100 + i - 1 - age)]) : .float32(zeros)
            runtime.expect(inputs["history\(age)"], wanted, "history \(age) of step \(i)")
        }
        let latents = runtime.damage.map { Tensor.float32([$0]) } ?? floats(generation.latents[i])
        return ["latents": latents, "history": .float32([Float(100 + i)])]
    }
}

import XCTest

@testable import TFSD

final class ErrorTests: XCTestCase {
    private var folder = URL(fileURLWithPath: NSTemporaryDirectory())

    override func setUpWithError() throws {
        folder = folder.appendingPathComponent(UUID().uuidString)
        try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
    }

    override func tearDownWithError() throws {
        try FileManager.default.removeItem(at: folder)
    }

    func testBadInputIsRefusedWithTheSameTextsAsEverywhere() async throws {
        let read = try JSONSerialization.jsonObject(with: Vectors.data("errors.json"))
        let vectors = try XCTUnwrap(read as? [String: Any])
        let files = try XCTUnwrap(vectors["files"] as? [String: Any])
        let cases = try XCTUnwrap(vectors["cases"] as? [[String: Any]])
        XCTAssertGreaterThan(cases.count, 20)
        for one in cases {
            let changed = try XCTUnwrap(one["files"] as? [String: Any])
            try write(files.merging(changed) { _, new in new })
            let wanted = try XCTUnwrap(one["text"] as? String).replacingOccurrences(of: "{folder}", with: folder.path)
            do {
                let arguments = try XCTUnwrap(one["arguments"] as? [String: Any])
                try await draw(arguments, memory: (one["memory"] as? Int).map { Int64($0) } ?? Int64.max)
                XCTFail("\(one["name"] ?? "") was not refused.")
            } catch let error as TFSDError {
                XCTAssertEqual(error.errorDescription, wanted)
                XCTAssertEqual(error.id, one["id"] as? String)
            }
        }
    }

    /// Writes the files whose contents are texts, and removes the others.
    private func write(_ files: [String: Any]) throws {
        for (name, contents) in files {
            let file = folder.appendingPathComponent(name)
            if let text = contents as? String {
                try Data(text.utf8).write(to: file)
            } else {
                try? FileManager.default.removeItem(at: file)
            }
        }
    }

    private func draw(_ arguments: [String: Any], memory: Int64) async throws {
        let bundle = try DeviceBundle(folder)
        let model = StableDiffusion(bundle, runtime: NoRuntime(), availableMemory: { memory })
        _ = try await model.textToImage(
            text(arguments["prompt"]),
            negativePrompt: text(arguments["negative_prompt"]),
            seed: (arguments["seed"] as? Int).map { Int64($0) },
            index: arguments["index"] as? Int ?? 0,
            numSteps: arguments["num_steps"] as? Int,
            guidanceScale: (arguments["guidance_scale"] as? Double).map { Float($0) },
            sampler: arguments["sampler"] as? String
        )
    }

    private func text(_ argument: Any?) -> String {
        if let long = argument as? [String: Any], let unit = long["repeat"] as? String, let times = long["times"] as? Int {
            return String(repeating: unit, count: times)
        }
        return argument as? String ?? ""
    }
}

/// A runtime that opens nothing.
private final class NoRuntime: Runtime {
    struct Unexpected: Error {}

    func open(_ file: URL, part: String, accelerators: [String], signatures: [String: Signature]) throws -> OpenModel {
        throw Unexpected()
    }
}

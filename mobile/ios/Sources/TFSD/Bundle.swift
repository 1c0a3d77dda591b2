import CryptoKit
import Foundation

/// A folder that `tfsd export tflite` wrote, checked: every file is there and whole.
///
/// It is called `DeviceBundle` because Foundation has a `Bundle` of its own.
public final class DeviceBundle: Sendable {
    /// A model file of a bundle.
    public struct Part: Sendable {
        /// Where it is.
        public let file: URL
        /// The bytes of memory that it needs while it runs.
        public let memory: Int64
        /// What it may run on, `gpu` or `cpu`, the fastest first: what its kind of file has passed on. Bundles of older versions
        /// do not say it and run on the CPU.
        public let accelerators: [String]
        /// What it can do, by name.
        public let signatures: [String: Signature]
    }

    /// What a caller gets who does not choose.
    public struct Defaults: Sendable {
        /// How many steps.
        public let numSteps: Int
        /// How much the prompt counts.
        public let guidanceScale: Float
        /// One of the bundle's samplers.
        public let sampler: String
    }

    /// The folder with `manifest.json`.
    public let folder: URL
    /// What the model is called.
    public let name: String
    /// How the weights were quantized.
    public let quantize: String
    /// What tells the weights from others.
    public let weights: String
    /// The name of the model's licence.
    public let licence: String
    /// What the licence forbids, to be passed on to the people who use the app; empty if nothing.
    public let useRestrictions: String
    /// Width of images in pixels.
    public let width: Int
    /// Height of images in pixels.
    public let height: Int
    /// Shape of the latents of one image: height, width, channels.
    public let latents: [Int]
    /// Samplers by name, in the order that the signature `plan` counts them.
    public let samplers: [String]
    /// Samplers by their other names, in lower case.
    public let samplerAliases: [String: String]
    /// Most steps that may be asked for.
    public let maxSteps: Int
    /// Highest `index` of an image.
    public let maxIndex: Int
    /// Seeds that differ by it stand for the same noise.
    public let seedPeriod: Int64
    /// What a caller gets who does not choose.
    public let defaults: Defaults
    /// What the text encoder reads.
    public let tokenizer: TokenizerSpec
    /// The model files by name: `sampling`, `text_encoder`, `denoiser`, `decoder`.
    public let parts: [String: Part]

    /// The file with the tokenizer's tables.
    public var tokenizerFile: URL { folder.appendingPathComponent(tokenizer.file) }

    /// Returns the sampler that a name or an alias, in upper or lower case, stands for; nil if there is none.
    public func findSampler(_ name: String) -> String? {
        [name, samplerAliases[name.lowercased()]].compactMap { $0 }.first { samplers.contains($0) }
    }

    /// Reads and checks a bundle.
    ///
    /// - Parameter checkHashes: whether to read all files and compare their SHA-256, seconds for a large model. Without it
    ///   sizes are compared, which is enough for a folder that came with the app.
    /// - Throws: `TFSDError`, if the folder is not a bundle, or a file is missing or damaged.
    public init(_ folder: URL, checkHashes: Bool = true) throws {
        let fields = try DeviceBundle.manifest(of: folder)
        let files = try DeviceBundle.checkedFiles(fields, in: folder, checkHashes: checkHashes)
        let parts = fields.values["parts"] as? [String: Any] ?? [:]
        for part in DeviceBundle.needed.keys.sorted() {
            guard let file = (parts[part] as? [String: Any])?["file"] as? String, files.contains(file) else {
                throw TFSDError("part", ["file": fields.file.path, "part": part])
            }
        }
        let described = try fields.fields("parts")
        var made: [String: Part] = [:]
        for (part, signatures) in DeviceBundle.needed {
            made[part] = try DeviceBundle.part(described.fields(part), in: folder, needed: signatures)
        }
        self.folder = folder
        self.parts = made
        name = try fields.get("name")
        quantize = try fields.get("quantize")
        weights = try fields.fields("identity").values["weights"] as? String ?? ""
        licence = fields.values["licence"] as? String ?? ""
        useRestrictions = fields.values["use_restrictions"] as? String ?? ""
        let size = try fields.ints("size", count: 2)
        height = size[0]
        width = size[1]
        latents = try fields.ints("latents", count: 3)
        samplers = try fields.get("samplers")
        samplerAliases = try fields.values["sampler_aliases"] == nil ? [:] : fields.get("sampler_aliases")
        maxSteps = try fields.int("max_steps")
        maxIndex = try fields.int("max_index")
        let period = try fields.int("seed_period")
        guard (1...Int(Int32.max) + 1).contains(period) else { throw fields.failure("seed_period") }
        seedPeriod = Int64(period)
        let own = try fields.fields("defaults")
        defaults = Defaults(
            numSteps: try own.int("num_steps"),
            guidanceScale: Float(try own.get("guidance_scale") as Double),
            sampler: try own.get("sampler")
        )
        let text = try fields.fields("tokenizer")
        let file: String = try text.get("file")
        guard files.contains(file) else { throw text.failure("file") }
        tokenizer = TokenizerSpec(
            file: file,
            length: try text.int("length"),
            startToken: Int32(truncatingIfNeeded: try text.int("start_token")),
            endToken: Int32(truncatingIfNeeded: try text.int("end_token")),
            padToken: Int32(truncatingIfNeeded: try text.int("pad_token")),
            ftfy: try text.get("ftfy")
        )
    }

    // MARK: Checks

    private static let formats = [2, 3]  // in 2 the input `timestep_features` of `step` is called `waves`
    private static let mostBytes = 64 << 20  // of a manifest
    private static let keys = [
        "defaults", "files", "format", "identity", "latents", "max_index", "max_steps", "name", "parts", "quantize",
        "samplers", "seed_period", "size", "tokenizer",
    ]
    private static let needed: [String: [String]] = [
        "sampling": ["plan", "noise"],
        "text_encoder": ["encode"],
        "denoiser": ["step"],
        "decoder": ["decode"],
    ]

    private static func manifest(of folder: URL) throws -> Fields {
        let file = folder.appendingPathComponent("manifest.json")
        guard FileManager.default.fileExists(atPath: file.path) else {
            throw TFSDError("no_bundle", ["folder": folder.path])
        }
        let size = try? file.resolvingSymlinksInPath().resourceValues(forKeys: [.fileSizeKey]).fileSize
        guard (size ?? 0) <= mostBytes else {
            throw TFSDError("large", ["file": file.path, "limit": "\(mostBytes)"])
        }
        guard let data = try? Data(contentsOf: file) else {
            throw TFSDError("unreadable", ["file": file.path, "reason": "Permission denied"])
        }
        guard let values = (try? JSONSerialization.jsonObject(with: data)) as? [String: Any] else {
            throw TFSDError("no_json", ["file": file.path])
        }
        guard values["kind"] as? String == "device" else {
            throw TFSDError("not_device", ["file": file.path])
        }
        let missing = keys.filter { values[$0] == nil }
        guard missing.isEmpty else {
            throw TFSDError("lacks", ["file": file.path, "names": missing.joined(separator: ", ")])
        }
        guard let format = values["format"] as? Int, formats.contains(format) else {
            let found = "\(values["format"] ?? "")".prefix(20)
            let known = formats.map { "\($0)" }.joined(separator: " and ")
            throw TFSDError("format", ["file": file.path, "format": String(found), "known": known])
        }
        return Fields(file: file, path: "", values: values)
    }

    /// Returns the names of the files beside the manifest, all there and whole.
    private static func checkedFiles(_ fields: Fields, in folder: URL, checkHashes: Bool) throws -> Set<String> {
        let manifest = fields.file.path
        let listed = fields.values["files"] as? [String: Any] ?? [:]
        guard !listed.isEmpty else { throw TFSDError("no_files", ["file": manifest]) }
        for name in listed.keys.sorted() {
            guard !name.hasPrefix("/"), !name.split(separator: "/").contains("..") else {
                throw TFSDError("outside", ["file": manifest, "name": name])
            }
            guard let entry = listed[name] as? [String: Any], let hash = entry["sha256"], let bytes = entry["bytes"] else {
                throw TFSDError("entry", ["file": manifest, "name": name])
            }
            let file = folder.appendingPathComponent(name)
            try check(file, bytes: "\(bytes)", hash: checkHashes ? "\(hash)" : nil)
        }
        return Set(listed.keys)
    }

    private static func check(_ file: URL, bytes: String, hash: String?) throws {
        let target = file.resolvingSymlinksInPath()
        guard let attributes = try? FileManager.default.attributesOfItem(atPath: target.path) else {
            throw TFSDError("unreadable", ["file": file.path, "reason": "No such file or directory"])
        }
        let actual = "\(attributes[.size] ?? 0)"
        guard actual == bytes else {
            throw TFSDError("size", ["file": file.path, "actual": actual, "wanted": bytes])
        }
        guard let hash = hash else { return }
        guard let digest = try? sha256(of: target) else {
            throw TFSDError("unreadable", ["file": file.path, "reason": "Permission denied"])
        }
        guard digest == hash else {
            let shown = ["actual": String(digest.prefix(12)), "wanted": String(hash.prefix(12))]
            throw TFSDError("hash", shown.merging(["file": file.path]) { old, _ in old })
        }
    }

    private static func sha256(of file: URL) throws -> String {
        let handle = try FileHandle(forReadingFrom: file)
        defer { try? handle.close() }
        var hash = SHA256()
        var isAtEnd = false
        while !isAtEnd {
            try autoreleasepool {
                let piece = try handle.read(upToCount: 1 << 20) ?? Data()
                hash.update(data: piece)
                isAtEnd = piece.isEmpty
            }
        }
        return hash.finalize().map { String(format: "%02x", $0) }.joined()
    }

    private static func part(_ fields: Fields, in folder: URL, needed: [String]) throws -> Part {
        let described = try fields.fields("signatures")
        var signatures: [String: Signature] = [:]
        for name in Set(needed).union(described.values.keys) {
            let signature = try described.fields(name)
            signatures[name] = Signature(inputs: try signature.tensors("inputs"), outputs: try signature.tensors("outputs"))
        }
        let file: String = try fields.get("file")
        return Part(
            file: folder.appendingPathComponent(file),
            memory: Int64(try fields.int("memory")),
            accelerators: try fields.values["accelerators"] == nil ? ["cpu"] : fields.get("accelerators"),
            signatures: signatures
        )
    }
}

/// The entries of an object in the manifest; one that is missing or of another kind is an error that names it.
private struct Fields {
    let file: URL
    let path: String
    let values: [String: Any]

    func failure(_ key: String) -> TFSDError {
        TFSDError("field", ["file": file.path, "name": path + key])
    }

    func get<T>(_ key: String) throws -> T {
        guard let value = values[key] as? T else { throw failure(key) }
        return value
    }

    func fields(_ key: String) throws -> Fields {
        Fields(file: file, path: "\(path)\(key).", values: try get(key))
    }

    func int(_ key: String) throws -> Int {
        let value: Int = try get(key)
        guard value >= 0 else { throw failure(key) }
        return value
    }

    func ints(_ key: String, count: Int? = nil) throws -> [Int] {
        let found: [Int] = try get(key)
        guard found.allSatisfy({ $0 >= 0 }), count == nil || found.count == count else { throw failure(key) }
        return found
    }

    func tensors(_ key: String) throws -> [String: TensorInfo] {
        let described = try fields(key)
        var tensors: [String: TensorInfo] = [:]
        for name in described.values.keys {
            let tensor = try described.fields(name)
            let dtype: String = try tensor.get("dtype")
            guard ["int32", "float32"].contains(dtype) else { throw tensor.failure("dtype") }
            tensors[name] = TensorInfo(dtype: dtype, shape: try tensor.ints("shape"))
        }
        return tensors
    }
}

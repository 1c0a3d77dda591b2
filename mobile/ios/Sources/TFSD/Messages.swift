import Foundation

/// What went wrong; `errorDescription` tells a person what to do.
public struct TFSDError: LocalizedError, Equatable, Sendable {
    /// One of the ids in `mobile/messages.json`.
    public let id: String
    /// What stands in the places of the text.
    public let values: [String: String]

    init(_ id: String, _ values: [String: String]) {
        self.id = id
        self.values = values
    }

    /// The whole text.
    public var errorDescription: String? { Messages.text(id, values) }
}

/// The texts of all errors: the same as in `mobile/messages.json`, in the Kotlin library and in Python.
enum Messages {
    static let templates: [String: String] = [
        "no_bundle": "{folder} is not a device bundle: it has no manifest.json. `tfsd export tflite` makes one.",
        "not_device": "{file} is not the manifest of a device bundle. `tfsd export tflite` makes one.",
        "no_json": "{file} is damaged: it is not a JSON object.",
        "large": "{file} is larger than {limit} bytes.",
        "lacks": "{file} is damaged: it lacks {names}.",
        "format": "{file} has format {format}; this tfsd reads {known}. Export it again.",
        "no_files": "{file} is damaged: it lists no files.",
        "outside": "{file} names {name}, which is outside of the folder.",
        "entry": "{file} is damaged: it does not say what {name} is.",
        "unreadable": "{file} cannot be read: {reason}.",
        "size": "{file} is damaged: it has {actual} bytes instead of {wanted}.",
        "hash": "{file} is damaged: its SHA-256 is {actual}... instead of {wanted}....",
        "part": "{file} is damaged: it does not say in which of its files {part} is.",
        "field": "{file} is damaged: {name} is missing or not what it should be.",
        "range": "{name} must be from {low} to {high}; got {value}.",
        "guidance": "guidance_scale must be from 0 to {high}; got {value}. Values from 3 to 10 are usual.",
        "sampler": "sampler must be one of {names}; got '{value}'.",
        "prompt_size": "{name} must be at most {limit} bytes of UTF-8; got at least {size}. Shorten it.",
        "surrogate": "{name} must be Unicode text; got half a surrogate pair, {half}. Remove it.",
        "memory":
            "{part} needs {needed} of memory; {free} are free. Close other programs, or export the bundle with another quantize.",
        "load": "{file} cannot be loaded by LiteRT: {reason}",
        "run": "{part}.{signature} cannot be run by LiteRT: {reason}",
        "not_finite":
            "The latents are NaN or infinite after {done} of {steps} steps. Half precision, which GPUs use, ends at 65504: run the bundle on the CPU, or export it with another quantize.",
        "cancelled": "Cancelled after {done} of {steps} steps.",
    ]

    /// Returns the text of an error with `values` in their places.
    static func text(_ id: String, _ values: [String: String]) -> String {
        var rest = Substring(templates[id] ?? id)
        var text = ""
        while let open = rest.firstIndex(of: "{"), let close = rest[open...].firstIndex(of: "}") {
            let name = String(rest[rest.index(after: open)..<close])
            text.append(contentsOf: rest[..<open])
            text.append(values[name] ?? "")
            rest = rest[rest.index(after: close)...]
        }
        text.append(contentsOf: rest)
        return text
    }

    /// Returns bytes as a person reads them: `1.9 GB`.
    static func size(_ bytes: Int64) -> String {
        String(format: "%.1f GB", Double(bytes) / 1e9)
    }
}

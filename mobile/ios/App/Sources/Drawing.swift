import Combine
import CoreGraphics
import Foundation
import TFSD
import TFSDLiteRT

/// What the screen shows and asks for.
@MainActor
final class Drawing: ObservableObject {
    @Published var prompt = "a red star above a blue house at night"
    @Published var negativePrompt = ""
    @Published var seed = ""
    @Published var numSteps = 20
    @Published var guidanceScale = 7.5
    @Published var sampler = ""
    /// The finished image, its recipe and its PNG file.
    @Published private(set) var shown: (image: CGImage, recipe: Recipe, file: URL)?
    /// How much of the image under way is done, from 0 to 1; nil if none is.
    @Published private(set) var progress: Double?
    @Published private(set) var failure: String?
    /// What runs each part.
    @Published private(set) var notes: [String: String] = [:]
    @Published private(set) var bundle: DeviceBundle?

    private var model: StableDiffusion?
    private var task: Task<Void, Never>?

    /// Finds the bundle in the app, and makes the model of it.
    func load() async {
        guard model == nil else { return }
        guard let folder = Bundle.main.url(forResource: "Model", withExtension: nil) else {
            failure = "The app holds no folder Model: export a bundle there, and build it again."
            return
        }
        do {
            // The app is signed, so its files need not be hashed again.
            let bundle = try DeviceBundle(folder, checkHashes: false)
            let runtime = try LiteRTRuntime(accelerator: .gpu) { [weak self] part, used, isWhole in
                Task { @MainActor [weak self] in
                    self?.notes[part] = isWhole || used == .cpu ? used.rawValue : "\(used.rawValue) and cpu"
                }
            }
            numSteps = bundle.defaults.numSteps
            guidanceScale = Double(bundle.defaults.guidanceScale)
            sampler = bundle.defaults.sampler
            model = StableDiffusion(bundle, runtime: runtime)
            self.bundle = bundle
        } catch {
            failure = error.localizedDescription
        }
    }

    /// Begins an image.
    func draw() {
        guard let model = model, task == nil else { return }
        let text = seed.trimmingCharacters(in: .whitespaces)
        let number = Int64(text)
        guard text.isEmpty || number != nil else {
            failure = "seed must be a whole number; got \(text)."
            return
        }
        failure = nil
        progress = 0
        task = Task {
            do {
                let picture = try await model.textToImage(
                    self.prompt,
                    negativePrompt: self.negativePrompt,
                    seed: number,
                    numSteps: self.numSteps,
                    guidanceScale: Float(self.guidanceScale),
                    sampler: self.sampler
                ) { [weak self] done, steps in
                    Task { @MainActor [weak self] in
                        self?.advance(to: Double(done) / Double(steps))
                    }
                    return true
                }
                try self.show(picture)
            } catch is CancellationError {
                // The person knows.
            } catch {
                self.failure = error.localizedDescription
            }
            self.task = nil
            self.progress = nil
        }
    }

    /// Stops the image under way.
    func cancel() {
        task?.cancel()
    }

    private func advance(to part: Double) {
        if task != nil {
            progress = part
        }
    }

    private func show(_ picture: Picture) throws {
        guard let image = picture.image(), let png = picture.png() else {
            failure = "There is too little memory to show the image."
            return
        }
        let file = FileManager.default.temporaryDirectory.appendingPathComponent("tfsd-\(picture.recipe.seed).png")
        try png.write(to: file)
        shown = (image, picture.recipe, file)
    }
}

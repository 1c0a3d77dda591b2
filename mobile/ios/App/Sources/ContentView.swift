import SwiftUI
import TFSD

/// The one screen: what to draw, how far it is, and the image.
struct ContentView: View {
    @ObservedObject var drawing: Drawing

    var body: some View {
        NavigationStack {
            Form {
                Section("Prompt") {
                    TextField("What is to be seen", text: $drawing.prompt, axis: .vertical)
                    TextField("What is not", text: $drawing.negativePrompt, axis: .vertical)
                }
                options
                Section {
                    button
                    if let failure = drawing.failure {
                        Text(failure).foregroundColor(.red)
                    }
                }
                result
            }
            .navigationTitle("tfsd")
        }
    }

    @ViewBuilder private var options: some View {
        if let bundle = drawing.bundle {
            Section("Options") {
                TextField("Seed (any number)", text: $drawing.seed)
                    .keyboardType(.numbersAndPunctuation)
                Stepper("Steps: \(drawing.numSteps)", value: $drawing.numSteps, in: 1...bundle.maxSteps)
                VStack(alignment: .leading) {
                    Text("Guidance: \(drawing.guidanceScale, specifier: "%.1f")")
                    Slider(value: $drawing.guidanceScale, in: 0...20, step: 0.5)
                }
                Picker("Sampler", selection: $drawing.sampler) {
                    ForEach(bundle.samplers, id: \.self) { Text($0) }
                }
            }
        }
    }

    @ViewBuilder private var button: some View {
        if let progress = drawing.progress {
            ProgressView(value: progress)
            Button("Cancel", role: .cancel) { drawing.cancel() }
        } else {
            Button("Draw") { drawing.draw() }
                .disabled(drawing.bundle == nil)
        }
    }

    @ViewBuilder private var result: some View {
        if let shown = drawing.shown {
            Section {
                Image(decorative: shown.image, scale: 1)
                    .resizable()
                    .scaledToFit()
                    .accessibilityLabel(shown.recipe.prompt)
                ShareLink("Save or share", item: shown.file)
            } footer: {
                Text("Seed \(String(shown.recipe.seed)). \(used)\(drawing.bundle?.useRestrictions ?? "")")
            }
        }
    }

    /// What ran each part, as a sentence.
    private var used: String {
        drawing.notes.sorted { $0.key < $1.key }.map { "\($0.key): \($0.value). " }.joined()
    }
}

import SwiftUI

/// A sample: images of prompts, drawn on the phone.
@main
struct TFSDApp: App {
    @StateObject private var drawing = Drawing()

    var body: some Scene {
        WindowGroup {
            ContentView(drawing: drawing)
                .task { await drawing.load() }
        }
    }
}

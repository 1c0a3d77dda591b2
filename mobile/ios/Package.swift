// swift-tools-version: 5.9

import PackageDescription

#if os(Linux)
// For tests without Apple's systems: stand-ins for their frameworks and LiteRT, and of the app what is no screen.
let frameworks = ["Combine", "CoreGraphics", "CryptoKit", "ImageIO", "LiteRT", "os"]
let dependencies: [Package.Dependency] = []
let core: [Target.Dependency] = ["CoreGraphics", "CryptoKit", "ImageIO", "os"]
let runtime: [Target.Dependency] = ["LiteRT"]
let extra: [Target] =
    frameworks.map { name in
        .target(name: name, dependencies: name == "ImageIO" ? ["CoreGraphics"] : [], path: "Tests/StandIns/\(name)")
    } + [
        .target(
            name: "Drawing", dependencies: ["TFSD", "TFSDLiteRT", "Combine"], path: "App/Sources",
            exclude: ["ContentView.swift", "TFSDApp.swift"])
    ]
#else
let dependencies: [Package.Dependency] = [
    // A release branch, as LiteRT's documentation has it: only there does its manifest name the published frameworks.
    .package(url: "https://github.com/google-ai-edge/LiteRT", branch: "release/2.3.0")
]
let core: [Target.Dependency] = []
let runtime: [Target.Dependency] = [
    .product(name: "LiteRT", package: "LiteRT"),
    .product(name: "LiteRtMetalAccelerator", package: "LiteRT"),
]
let extra: [Target] = []
#endif

let package = Package(
    name: "TFSD",
    platforms: [.iOS(.v16), .macOS(.v13)],
    products: [
        .library(name: "TFSD", targets: ["TFSD"]),
        .library(name: "TFSDLiteRT", targets: ["TFSDLiteRT"]),
    ],
    dependencies: dependencies,
    targets: [
        .target(name: "TFSD", dependencies: core),
        .target(name: "TFSDLiteRT", dependencies: ["TFSD"] + runtime),
        .testTarget(name: "TFSDTests", dependencies: ["TFSD"]),
    ] + extra
)

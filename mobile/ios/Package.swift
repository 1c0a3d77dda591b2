// swift-tools-version: 5.9

import PackageDescription

let package = Package(
    name: "TFSD",
    platforms: [.iOS(.v16), .macOS(.v13)],
    products: [
        .library(name: "TFSD", targets: ["TFSD"]),
        .library(name: "TFSDLiteRT", targets: ["TFSDLiteRT"]),
    ],
    dependencies: [
        // A release branch, as LiteRT's documentation has it: only there does its manifest name the published frameworks.
        .package(url: "https://github.com/google-ai-edge/LiteRT", branch: "release/2.3.0")
    ],
    targets: [
        .target(name: "TFSD"),
        .target(
            name: "TFSDLiteRT",
            dependencies: [
                "TFSD",
                .product(name: "LiteRT", package: "LiteRT"),
                .product(name: "LiteRtMetalAccelerator", package: "LiteRT"),
            ]
        ),
        .testTarget(name: "TFSDTests", dependencies: ["TFSD"]),
    ]
)

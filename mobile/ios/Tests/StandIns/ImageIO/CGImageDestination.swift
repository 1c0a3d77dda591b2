import CoreGraphics
import Foundation

/// Stands in for Image I/O's: it writes nothing.
public final class CGImageDestination {}

public func CGImageDestinationCreateWithData(
    _ data: CFMutableData, _ type: CFString, _ count: Int, _ options: [String: Any]?
) -> CGImageDestination? {
    nil
}

public func CGImageDestinationAddImage(_ target: CGImageDestination, _ image: CGImage, _ properties: [String: Any]?) {}

public func CGImageDestinationFinalize(_ target: CGImageDestination) -> Bool { false }

import Foundation
import os

/// How much memory there is.
public enum Memory {
    /// Returns the bytes that this app may still use before the system ends it, or `Int64.max` where nobody can tell.
    ///
    /// Files that are mapped do not count, but what the runtime makes of them does.
    public static func available() -> Int64 {
        #if os(iOS) && !targetEnvironment(macCatalyst)
        let bytes = os_proc_available_memory()
        return bytes > 0 ? Int64(bytes) : Int64.max  // 0 on simulators
        #else
        return Int64.max
        #endif
    }
}

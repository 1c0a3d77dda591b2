/// Stands in for that of iOS, which is not asked elsewhere.
public func os_proc_available_memory() -> Int { 0 }

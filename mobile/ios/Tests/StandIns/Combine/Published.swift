/// Stands in for Combine's: nobody is told of changes.
public protocol ObservableObject: AnyObject {}

/// Stands in for Combine's: a plain variable.
@propertyWrapper public struct Published<Value> {
    public var wrappedValue: Value

    public init(wrappedValue: Value) {
        self.wrappedValue = wrappedValue
    }
}

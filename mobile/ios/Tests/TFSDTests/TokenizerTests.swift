import XCTest

@testable import TFSD

final class TokenizerTests: XCTestCase {
    private func makeTokenizer(ftfy: Bool) throws -> Tokenizer {
        let file = try Vectors.bundle().tokenizerFile
        let spec = TokenizerSpec(
            file: "tokenizer.json", length: 77, startToken: 49406, endToken: 49407, padToken: 49407, ftfy: ftfy)
        return try Tokenizer(file, spec: spec)
    }

    private func readCases() throws -> [TokenCase] {
        try JSONDecoder().decode([TokenCase].self, from: Vectors.data("tokens.json"))
    }

    func testReferenceTokensButForWrongDecodings() throws {
        let tokenizer = try makeTokenizer(ftfy: true)
        let certain = try readCases().filter { !$0.guessed }
        let wrong = try certain.filter { try tokenizer.encode($0.text) != $0.ids }
        XCTAssertEqual(wrong.map(\.text), [])
        XCTAssertEqual(certain.count, 965)
    }

    func testReferenceTokensWithoutFtfy() throws {
        let tokenizer = try makeTokenizer(ftfy: false)
        let all = try readCases()
        let wrong = try all.filter { try tokenizer.encode($0.text) != $0.idsWithoutFtfy ?? $0.ids }
        XCTAssertEqual(wrong.map(\.text), [])
        XCTAssertEqual(all.count, 1000)
    }

    func testIdsAreFilledUpOrCutOffToTheLengthOfTheTextEncoder() throws {
        let tokenizer = try makeTokenizer(ftfy: true)
        let short = tokenizer.pad(try tokenizer.encode("a red star"))
        XCTAssertEqual(short, [49406, 320, 736, 1565] + [Int32](repeating: 49407, count: 73))
        let long = tokenizer.pad(try tokenizer.encode(String(repeating: "star ", count: 100)))
        XCTAssertEqual(long, [49406] + [Int32](repeating: 1565, count: 75) + [49407])
    }

    func testWordsOfAnyLengthAreMerged() throws {
        let ids = try makeTokenizer(ftfy: true).encode(String(repeating: "qzxjvkw", count: 9362))
        XCTAssertGreaterThan(ids.count, 9362)
    }
}

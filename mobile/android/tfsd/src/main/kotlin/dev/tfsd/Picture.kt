package dev.tfsd

/**
 * An image and what it takes to make it again.
 *
 * @property pixels [height] rows of [width] colours, `0xAARRGGBB` and opaque, as `Bitmap.createBitmap` takes them.
 * @property recipe The arguments, the model's identity and the versions that exported it: the keys of Python's recipes.
 * @property unread Tokens at the end of the prompt that the text encoder had no room for; 0 for most prompts.
 */
class Picture(val pixels: IntArray, val width: Int, val height: Int, val recipe: Map<String, Any?>, val unread: Int) {
    /** The recipe as JSON, one line for each entry. */
    val recipeText: String get() = Json.write(recipe, indent = 2)
}

package dev.tfsd.app

import android.content.Context
import com.google.ai.edge.litert.Accelerator
import com.google.ai.edge.litert.Environment
import dev.tfsd.CancelledException
import dev.tfsd.Defaults
import dev.tfsd.Picture
import dev.tfsd.StableDiffusion
import dev.tfsd.android.LiteRtRuntime
import dev.tfsd.android.availableMemory
import kotlin.random.Random
import kotlinx.coroutines.CoroutineDispatcher
import kotlinx.coroutines.CoroutineScope
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.Job
import kotlinx.coroutines.flow.MutableStateFlow
import kotlinx.coroutines.flow.StateFlow
import kotlinx.coroutines.flow.asStateFlow
import kotlinx.coroutines.flow.update
import kotlinx.coroutines.isActive
import kotlinx.coroutines.launch

/** What a person asks for; null stands for the bundle's default. */
data class Wishes(
    val prompt: String,
    val negativePrompt: String,
    val seed: Long,
    val steps: Int?,
    val guidance: Float?,
    val sampler: String?,
) {
    companion object {
        /** Returns wishes from what was typed, null if a number is none. An empty seed is any, other empty numbers are defaults. */
        fun of(prompt: String, negativePrompt: String, seed: String, steps: String, guidance: String, sampler: String?): Wishes? =
            Wishes(
                prompt,
                negativePrompt,
                if (seed.isBlank()) Random.nextLong(1L shl 31) else seed.toLongOrNull() ?: return null,
                if (steps.isBlank()) null else steps.toIntOrNull() ?: return null,
                if (guidance.isBlank()) null else guidance.toFloatOrNull() ?: return null,
                sampler,
            )
    }
}

/** What the screen shows. While [isBusy], [done] of [steps] steps are done; before the first one both are 0. */
data class State(
    val samplers: List<String> = emptyList(),
    val defaults: Defaults? = null,
    val isBusy: Boolean = false,
    val done: Int = 0,
    val steps: Int = 0,
    val picture: Picture? = null,
    val error: String? = null,
    val used: Map<String, Accelerator> = emptyMap(),
)

/** Opens the app's bundle and draws, one image at a time on [dispatcher]; to be called on the main thread. */
class Generator(
    private val context: Context,
    private val scope: CoroutineScope,
    private val dispatcher: CoroutineDispatcher = Dispatchers.Default,
) {
    private val changing = MutableStateFlow(State())
    private var job: Job? = null
    private var model: StableDiffusion? = null // of the job

    /** What the screen shows. */
    val state: StateFlow<State> = changing.asStateFlow()

    init {
        start { opened() }
    }

    /** Draws an image, unless something is being done. */
    fun generate(wishes: Wishes) = start { job ->
        val picture = opened().textToImage(
            prompt = wishes.prompt,
            negativePrompt = wishes.negativePrompt,
            seed = wishes.seed,
            numSteps = wishes.steps,
            guidanceScale = wishes.guidance,
            sampler = wishes.sampler,
        ) { done, steps ->
            changing.update { it.copy(done = done, steps = steps) }
            job.isActive
        }
        changing.update { it.copy(picture = picture) }
    }

    /** Stops drawing after the current step. */
    fun cancel() {
        job?.cancel()
    }

    private fun start(work: (CoroutineScope) -> Unit) {
        if (job?.isCompleted == false) return
        changing.update { it.copy(isBusy = true, done = 0, steps = 0, error = null) }
        job = scope.launch(dispatcher) {
            try {
                work(this)
            } catch (_: CancelledException) {
                // as wished
            } catch (error: Exception) {
                changing.update { it.copy(error = error.message ?: error.toString()) }
            }
        }.apply { invokeOnCompletion { changing.update { it.copy(isBusy = false) } } }
    }

    private fun opened(): StableDiffusion = model ?: run {
        val bundle = openBundle(context)
        changing.update { it.copy(samplers = bundle.samplers, defaults = bundle.defaults) }
        val runtime = LiteRtRuntime(Environment.create(context)) { part, used ->
            changing.update { it.copy(used = it.used + (part to used)) }
        }
        StableDiffusion(bundle, runtime) { availableMemory(context) }.also { model = it }
    }
}

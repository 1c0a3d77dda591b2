package dev.tfsd.app

import android.graphics.Bitmap
import android.os.Bundle
import androidx.activity.ComponentActivity
import androidx.activity.compose.setContent
import androidx.compose.foundation.Image
import androidx.compose.foundation.layout.Arrangement
import androidx.compose.foundation.layout.Box
import androidx.compose.foundation.layout.Column
import androidx.compose.foundation.layout.Row
import androidx.compose.foundation.layout.fillMaxWidth
import androidx.compose.foundation.layout.padding
import androidx.compose.foundation.layout.safeDrawingPadding
import androidx.compose.foundation.rememberScrollState
import androidx.compose.foundation.text.KeyboardOptions
import androidx.compose.foundation.text.selection.SelectionContainer
import androidx.compose.foundation.verticalScroll
import androidx.compose.material3.Button
import androidx.compose.material3.DropdownMenu
import androidx.compose.material3.DropdownMenuItem
import androidx.compose.material3.LinearProgressIndicator
import androidx.compose.material3.MaterialTheme
import androidx.compose.material3.OutlinedTextField
import androidx.compose.material3.Surface
import androidx.compose.material3.Text
import androidx.compose.material3.TextButton
import androidx.compose.runtime.Composable
import androidx.compose.runtime.collectAsState
import androidx.compose.runtime.getValue
import androidx.compose.runtime.mutableStateOf
import androidx.compose.runtime.remember
import androidx.compose.runtime.saveable.rememberSaveable
import androidx.compose.runtime.setValue
import androidx.compose.ui.Modifier
import androidx.compose.ui.graphics.asImageBitmap
import androidx.compose.ui.layout.ContentScale
import androidx.compose.ui.res.stringResource
import androidx.compose.ui.text.font.FontFamily
import androidx.compose.ui.text.input.KeyboardType
import androidx.compose.ui.unit.dp
import dev.tfsd.Picture

/** The only screen: wishes, a button, progress, and the image with its recipe. */
class MainActivity : ComponentActivity() {
    override fun onCreate(savedInstanceState: Bundle?) {
        super.onCreate(savedInstanceState)
        setContent {
            MaterialTheme {
                Surface { Screen((application as App).generator) }
            }
        }
    }
}

@Composable
private fun Screen(generator: Generator) {
    val state by generator.state.collectAsState()
    val defaults = state.defaults
    var prompt by rememberSaveable { mutableStateOf("a red star above a blue house at night") }
    var negativePrompt by rememberSaveable { mutableStateOf("") }
    var seed by rememberSaveable { mutableStateOf("1") }
    var steps by rememberSaveable { mutableStateOf("") }
    var guidance by rememberSaveable { mutableStateOf("") }
    var sampler by rememberSaveable { mutableStateOf<String?>(null) }
    Column(
        modifier = Modifier.safeDrawingPadding().verticalScroll(rememberScrollState()).padding(16.dp),
        verticalArrangement = Arrangement.spacedBy(8.dp),
    ) {
        Field(stringResource(R.string.prompt), prompt, Modifier.fillMaxWidth()) { prompt = it }
        Field(stringResource(R.string.negative_prompt), negativePrompt, Modifier.fillMaxWidth()) { negativePrompt = it }
        Row(horizontalArrangement = Arrangement.spacedBy(8.dp)) {
            Field(stringResource(R.string.seed), seed, Modifier.weight(1f), KeyboardType.Number) { seed = it }
            Field(stringResource(R.string.steps), steps, Modifier.weight(1f), KeyboardType.Number, defaults?.numSteps) { steps = it }
            Field(stringResource(R.string.guidance), guidance, Modifier.weight(1f), KeyboardType.Decimal, defaults?.guidanceScale) {
                guidance = it
            }
        }
        Samplers(state.samplers, sampler ?: defaults?.sampler.orEmpty()) { sampler = it }
        if (state.isBusy) {
            Button(onClick = generator::cancel) { Text(stringResource(R.string.cancel)) }
            Progress(state)
        } else {
            val wishes = Wishes.of(prompt, negativePrompt, seed, steps, guidance, sampler)
            Button(onClick = { wishes?.let(generator::generate) }, enabled = wishes != null) { Text(stringResource(R.string.generate)) }
        }
        state.error?.let { Text(it, color = MaterialTheme.colorScheme.error) }
        state.picture?.let { Shown(it) }
        if (state.used.isNotEmpty()) {
            val used = state.used.entries.joinToString { (part, accelerator) -> "$part: $accelerator" }
            Text(stringResource(R.string.accelerators, used), style = MaterialTheme.typography.bodySmall)
        }
    }
}

@Composable
private fun Field(
    label: String,
    value: String,
    modifier: Modifier,
    keyboard: KeyboardType = KeyboardType.Text,
    default: Any? = null,
    onChange: (String) -> Unit,
) {
    OutlinedTextField(
        value = value,
        onValueChange = onChange,
        modifier = modifier,
        label = { Text(label) },
        placeholder = { Text(default?.toString().orEmpty()) },
        keyboardOptions = KeyboardOptions(keyboardType = keyboard),
    )
}

@Composable
private fun Samplers(samplers: List<String>, chosen: String, onChoice: (String) -> Unit) {
    var isOpen by remember { mutableStateOf(false) }
    Box {
        TextButton(onClick = { isOpen = true }) { Text(stringResource(R.string.sampler, chosen)) }
        DropdownMenu(expanded = isOpen, onDismissRequest = { isOpen = false }) {
            for (sampler in samplers) {
                DropdownMenuItem(text = { Text(sampler) }, onClick = { onChoice(sampler); isOpen = false })
            }
        }
    }
}

@Composable
private fun Progress(state: State) {
    if (state.steps == 0) {
        Text(stringResource(R.string.loading))
        LinearProgressIndicator(Modifier.fillMaxWidth())
    } else {
        Text(stringResource(R.string.progress, state.done, state.steps))
        LinearProgressIndicator(progress = { state.done.toFloat() / state.steps }, modifier = Modifier.fillMaxWidth())
    }
}

@Composable
private fun Shown(picture: Picture) {
    val bitmap = remember(picture) {
        Bitmap.createBitmap(picture.pixels, picture.width, picture.height, Bitmap.Config.ARGB_8888).asImageBitmap()
    }
    val prompt = picture.recipe["prompt"] as String
    Image(bitmap, contentDescription = prompt, modifier = Modifier.fillMaxWidth(), contentScale = ContentScale.FillWidth)
    if (picture.unread > 0) Text(stringResource(R.string.unread, picture.unread))
    SelectionContainer {
        Text(picture.recipeText, fontFamily = FontFamily.Monospace, style = MaterialTheme.typography.bodySmall)
    }
}

package dev.tfsd.app

import android.app.Application
import kotlinx.coroutines.MainScope

/** Owns what draws, so that an image is finished even if its screen is closed, and no second one is drawn beside it. */
class App : Application() {
    /** What draws. */
    val generator by lazy { Generator(this, MainScope()) }
}

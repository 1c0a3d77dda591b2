plugins {
    alias(libs.plugins.android.library)
    alias(libs.plugins.kotlin.android)
}

android {
    namespace = "dev.tfsd"
    compileSdk = 36

    defaultConfig {
        minSdk = 26
        consumerProguardFiles("consumer-rules.pro")
    }

    compileOptions {
        sourceCompatibility = JavaVersion.VERSION_17
        targetCompatibility = JavaVersion.VERSION_17
    }
}

kotlin {
    jvmToolchain(17)
}

// What is under src/test is no source set of Gradle's: tests/mobile/test_kotlin.py runs it on a plain JVM.
dependencies {
    api(libs.litert) // apps make its Environment
    runtimeOnly(libs.litert.gpu)
}

plugins {
    alias(libs.plugins.android.application)
    alias(libs.plugins.kotlin.android)
    alias(libs.plugins.kotlin.compose)
}

android {
    namespace = "dev.tfsd.app"
    compileSdk = 36

    defaultConfig {
        applicationId = "dev.tfsd.app"
        minSdk = 26
        targetSdk = 36
        versionCode = 1
        versionName = "1.0"
    }

    buildFeatures {
        compose = true
    }

    compileOptions {
        sourceCompatibility = JavaVersion.VERSION_17
        targetCompatibility = JavaVersion.VERSION_17
    }
}

kotlin {
    jvmToolchain(17)
}

dependencies {
    implementation(project(":tfsd"))
    implementation(platform(libs.compose.bom))
    implementation(libs.compose.material)
    implementation(libs.activity.compose)
    implementation(libs.coroutines)
}

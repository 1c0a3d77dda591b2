/* The native methods of dev.tfsd.jvm.NativeModel: runtime.h for the JVM.
 *
 * A method that fails puts a sentence in the first place of its last argument, an array of one String, and returns 0 or false;
 * it throws only what the JVM itself does when memory is short. */
#include <jni.h>
#include <stdio.h>
#include <stdlib.h>

#include "../native/runtime.h"

/* Puts a sentence in `place` and returns false. */
static jboolean report(JNIEnv *env, jobjectArray place, const char *text) {
  jstring made = (*env)->NewStringUTF(env, text);
  if (made != NULL) (*env)->SetObjectArrayElement(env, place, 0, made);
  return JNI_FALSE;
}

JNIEXPORT jlong JNICALL Java_dev_tfsd_jvm_NativeModel_open(JNIEnv *env, jclass class, jbyteArray path, jint threads,
                                                           jobjectArray place) {
  (void)class;
  TfsdError error;
  jsize length = (*env)->GetArrayLength(env, path);
  char *name = calloc((size_t)length + 1, 1);
  if (name == NULL) {
    report(env, place, "out of memory");
    return 0;
  }
  (*env)->GetByteArrayRegion(env, path, 0, length, (jbyte *)name);
  TfsdModel *model = tfsd_open(name, threads, &error);
  free(name);
  if (model == NULL) report(env, place, error.text);
  return (jlong)(intptr_t)model;
}

JNIEXPORT void JNICALL Java_dev_tfsd_jvm_NativeModel_close(JNIEnv *env, jclass class, jlong handle) {
  (void)env;
  (void)class;
  tfsd_close((TfsdModel *)(intptr_t)handle);
}

/* Tells whether `array` is an IntArray or FloatArray as the type of `tensor` asks. */
static bool is_of_type(JNIEnv *env, jobject array, const TfsdTensor *tensor, TfsdError *error) {
  bool whole = tensor->type.element_type == kLiteRtElementTypeInt32;
  jclass wanted = (*env)->FindClass(env, whole ? "[I" : "[F");
  if (wanted == NULL) return false;
  bool same = array != NULL && (*env)->IsInstanceOf(env, array, wanted);
  (*env)->DeleteLocalRef(env, wanted);
  if (!same) snprintf(error->text, sizeof error->text, "%s needs values of type %s", tensor->name, tfsd_dtype(tensor));
  return same;
}

/* Copies the values of `array` to the input `name`, or those of the output `name` to it. */
static bool copy(JNIEnv *env, TfsdSignature *signature, const char *name, jobject array, bool input, TfsdError *error) {
  TfsdTensor *tensor = (input ? tfsd_input : tfsd_output)(signature, name, error);
  if (tensor == NULL || !is_of_type(env, array, tensor, error)) return false;
  size_t bytes = 4 * (size_t)(*env)->GetArrayLength(env, array); /* int32 and float32 alike */
  void *values = (*env)->GetPrimitiveArrayCritical(env, array, NULL);
  if (values == NULL) {
    snprintf(error->text, sizeof error->text, "out of memory");
    return false;
  }
  bool done = input ? tfsd_set(signature, name, values, bytes, error) : tfsd_get(signature, name, values, bytes, error);
  (*env)->ReleasePrimitiveArrayCritical(env, array, values, input ? JNI_ABORT : 0); /* JNI_ABORT: nothing to write back */
  return done;
}

/* Copies all of `arrays`, which belong to the inputs or outputs `names`. */
static bool copy_all(JNIEnv *env, TfsdSignature *signature, jobjectArray names, jobjectArray arrays, bool input,
                     TfsdError *error) {
  jsize count = (*env)->GetArrayLength(env, names);
  bool done = true;
  for (jsize i = 0; done && i < count; i++) {
    jstring name = (*env)->GetObjectArrayElement(env, names, i);
    jobject array = (*env)->GetObjectArrayElement(env, arrays, i);
    const char *text = (*env)->GetStringUTFChars(env, name, NULL);
    done = text != NULL && copy(env, signature, text, array, input, error);
    if (text != NULL) (*env)->ReleaseStringUTFChars(env, name, text);
    (*env)->DeleteLocalRef(env, array);
    (*env)->DeleteLocalRef(env, name);
  }
  return done;
}

JNIEXPORT jboolean JNICALL Java_dev_tfsd_jvm_NativeModel_run(JNIEnv *env, jclass class, jlong handle, jstring signature,
                                                             jobjectArray input_names, jobjectArray inputs,
                                                             jobjectArray output_names, jobjectArray outputs,
                                                             jobjectArray place) {
  (void)class;
  TfsdError error = {.text = "out of memory"}; /* what is left to fail without a sentence */
  TfsdModel *model = (TfsdModel *)(intptr_t)handle;
  const char *name = (*env)->GetStringUTFChars(env, signature, NULL);
  if (name == NULL) return JNI_FALSE; /* the JVM has thrown */
  TfsdSignature *found = tfsd_signature(model, name, &error);
  (*env)->ReleaseStringUTFChars(env, signature, name);
  if (found != NULL) tfsd_clear(found); /* an earlier call may have failed half-way */
  if (found != NULL && copy_all(env, found, input_names, inputs, true, &error) && tfsd_run(model, found, &error) &&
      copy_all(env, found, output_names, outputs, false, &error)) {
    return JNI_TRUE;
  }
  return (*env)->ExceptionCheck(env) ? JNI_FALSE : report(env, place, error.text);
}

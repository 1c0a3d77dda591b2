#define _POSIX_C_SOURCE 200809L /* strdup */

#include "runtime.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Writes a sentence to `error`, cut to its size, and returns false. */
__attribute__((format(printf, 2, 3))) static bool fail(TfsdError *error, const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(error->text, sizeof error->text, format, arguments);
  va_end(arguments);
  return false;
}

/* Returns what a status means. */
static const char *meaning(LiteRtStatus status) {
  switch (status) {
    case kLiteRtStatusErrorInvalidArgument:
      return "invalid argument";
    case kLiteRtStatusErrorMemoryAllocationFailure:
      return "out of memory";
    case kLiteRtStatusErrorRuntimeFailure:
      return "runtime failure";
    case kLiteRtStatusErrorUnsupported:
      return "unsupported";
    case kLiteRtStatusErrorFileIO:
      return "the file cannot be read";
    case kLiteRtStatusErrorInvalidFlatbuffer:
      return "the file is not a TFLite model";
    case kLiteRtStatusErrorCompilation:
      return "the model cannot be compiled";
    default:
      return "failure";
  }
}

/* Tells whether a call of LiteRT succeeded, and if not, writes which one failed and how. */
static bool ok(LiteRtStatus status, const char *call, TfsdError *error) {
  return status == kLiteRtStatusOk || fail(error, "LiteRT's %s failed: %s (status %d)", call, meaning(status), (int)status);
}

/* Calls a function of LiteRT and tells whether it succeeded; `error` must be in scope. */
#define CALL(function, ...) ok(LiteRt##function(__VA_ARGS__), #function, error)

/* Adds a group of options, given as TOML, which is copied. */
static bool add_options(LiteRtOptions options, const char *name, const char *toml, TfsdError *error) {
  char *payload = strdup(toml);
  if (payload == NULL) return fail(error, "out of memory");
  LiteRtOpaqueOptions group = NULL;
  if (!CALL(CreateOpaqueOptions, name, payload, free, &group)) {
    free(payload);
    return false;
  }
  if (CALL(AddOpaqueOptions, options, group)) return true;
  LiteRtDestroyOpaqueOptions(group);
  return false;
}

/* Makes the options of a model: the CPU, its threads, and that messages of errors are collected. */
static bool fill_options(LiteRtOptions options, int threads, TfsdError *error) {
  char cpu[32];
  snprintf(cpu, sizeof cpu, "num_threads = %d\n", threads);
  return CALL(SetOptionsHardwareAccelerators, options, kLiteRtHwAcceleratorCpu) && add_options(options, "xnnpack", cpu, error) &&
         add_options(options, "runtime_options_string", "error_reporter_mode = 2\n", error);
}

/* Makes the model runnable. */
static bool compile(TfsdModel *model, int threads, TfsdError *error) {
  LiteRtOptions options = NULL;
  if (!CALL(CreateOptions, &options)) return false;
  bool done = fill_options(options, threads, error) &&
              CALL(CreateCompiledModel, model->environment, model->model, options, &model->compiled);
  LiteRtDestroyOptions(options);
  return done;
}

/* Makes the environment of a model: without options it would look for libraries of all accelerators and report each. */
static bool create_environment(TfsdModel *model, TfsdError *error) {
  LiteRtEnvOption options[] = {
      {kLiteRtEnvOptionTagAutoRegisterAccelerators, {.type = kLiteRtAnyTypeInt, .int_value = kLiteRtHwAcceleratorCpu}},
      {kLiteRtEnvOptionTagMinLoggerSeverity, {.type = kLiteRtAnyTypeInt, .int_value = kLiteRtLogSeverityError}},
  };
  return CALL(CreateEnvironment, 2, options, &model->environment);
}

/* Learns type and size of a tensor and makes its buffer. */
static bool describe(TfsdModel *model, LiteRtTensor tensor, LiteRtTensorBufferRequirements requirements, TfsdTensor *described,
                     LiteRtTensorBuffer *buffer, TfsdError *error) {
  if (!CALL(GetRankedTensorType, tensor, &described->type)) return false;
  LiteRtElementType type = described->type.element_type;
  if (type != kLiteRtElementTypeFloat32 && type != kLiteRtElementTypeInt32) {
    return fail(error, "%s is of LiteRT's type %d; only float32 and int32 are known here", described->name, (int)type);
  }
  for (unsigned i = 0; i < described->type.layout.rank; i++) {
    if (described->type.layout.dimensions[i] < 1) return fail(error, "%s has dimensions that are not fixed", described->name);
  }
  return CALL(CreateManagedTensorBufferFromRequirements, model->environment, &described->type, requirements, buffer) &&
         CALL(GetTensorBufferPackedSize, *buffer, &described->bytes);
}

/* Fills in one of the inputs of the signature with the number `at`. */
static bool add_input(TfsdModel *model, LiteRtSignature handle, size_t at, size_t index, TfsdError *error) {
  TfsdSignature *signature = &model->signatures[at];
  TfsdTensor *input = &signature->inputs[index];
  LiteRtTensor tensor = NULL;
  LiteRtTensorBufferRequirements requirements = NULL;
  return CALL(GetSignatureInputName, handle, index, &input->name) &&
         CALL(GetSignatureInputTensorByIndex, handle, index, &tensor) &&
         CALL(GetCompiledModelInputBufferRequirements, model->compiled, at, index, &requirements) &&
         describe(model, tensor, requirements, input, &signature->input_buffers[index], error);
}

/* Fills in one of the outputs of the signature with the number `at`. */
static bool add_output(TfsdModel *model, LiteRtSignature handle, size_t at, size_t index, TfsdError *error) {
  TfsdSignature *signature = &model->signatures[at];
  TfsdTensor *output = &signature->outputs[index];
  LiteRtTensor tensor = NULL;
  LiteRtTensorBufferRequirements requirements = NULL;
  return CALL(GetSignatureOutputName, handle, index, &output->name) &&
         CALL(GetSignatureOutputTensorByIndex, handle, index, &tensor) &&
         CALL(GetCompiledModelOutputBufferRequirements, model->compiled, at, index, &requirements) &&
         describe(model, tensor, requirements, output, &signature->output_buffers[index], error);
}

/* Allocates `count` zeroed things of one size, at least one. */
static bool allocate(void **made, size_t count, size_t size, TfsdError *error) {
  *made = calloc(count ? count : 1, size);
  return *made != NULL || fail(error, "out of memory");
}

/* Fills in the signature with the number `at`. Counts are set once there are arrays, so that closing frees what there is. */
static bool add_signature(TfsdModel *model, size_t at, TfsdError *error) {
  TfsdSignature *signature = &model->signatures[at];
  LiteRtSignature handle = NULL;
  size_t inputs = 0, outputs = 0;
  if (!CALL(GetModelSignature, model->model, at, &handle) || !CALL(GetSignatureKey, handle, &signature->name) ||
      !CALL(GetNumSignatureInputs, handle, &inputs) || !CALL(GetNumSignatureOutputs, handle, &outputs) ||
      !allocate((void **)&signature->inputs, inputs, sizeof(TfsdTensor), error) ||
      !allocate((void **)&signature->outputs, outputs, sizeof(TfsdTensor), error) ||
      !allocate((void **)&signature->input_buffers, inputs, sizeof(LiteRtTensorBuffer), error) ||
      !allocate((void **)&signature->output_buffers, outputs, sizeof(LiteRtTensorBuffer), error)) {
    return false;
  }
  signature->num_inputs = inputs;
  signature->num_outputs = outputs;
  for (size_t i = 0; i < inputs; i++) {
    if (!add_input(model, handle, at, i, error)) return false;
  }
  for (size_t i = 0; i < outputs; i++) {
    if (!add_output(model, handle, at, i, error)) return false;
  }
  return true;
}

/* Tells whether a file can be read and begins as TFLite models do: LiteRT would not say why it refuses it. */
static bool is_model(const char *path, TfsdError *error) {
  char start[8] = {0};
  FILE *file = fopen(path, "rb");
  if (file == NULL) return fail(error, "%s", strerror(errno));
  errno = 0;
  size_t got = fread(start, 1, sizeof start, file);
  int reason = errno; /* fclose may change it */
  fclose(file);
  if (reason != 0) return fail(error, "%s", strerror(reason));
  return (got == sizeof start && memcmp(start + 4, "TFL3", 4) == 0) || fail(error, "the file is not a TFLite model");
}

/* Fills in an empty model. */
static bool load(TfsdModel *model, const char *path, int threads, TfsdError *error) {
  size_t count = 0;
  if (threads < 1) return fail(error, "threads must be at least 1; got %d", threads);
  if (!is_model(path, error) || !create_environment(model, error) ||
      !CALL(CreateModelFromFile, model->environment, path, &model->model) || !compile(model, threads, error) ||
      !CALL(GetNumModelSignatures, model->model, &count) ||
      !allocate((void **)&model->signatures, count, sizeof(TfsdSignature), error)) {
    return false;
  }
  model->num_signatures = count;
  for (size_t i = 0; i < count; i++) {
    if (!add_signature(model, i, error)) return false;
  }
  return true;
}

TfsdModel *tfsd_open(const char *path, int threads, TfsdError *error) {
  TfsdModel *model = NULL;
  if (!allocate((void **)&model, 1, sizeof *model, error)) return NULL;
  if (load(model, path, threads, error)) return model;
  tfsd_close(model);
  return NULL;
}

/* Frees arrays and buffers of a signature, of which some may not have been made. */
static void free_signature(TfsdSignature *signature) {
  for (size_t i = 0; i < signature->num_inputs; i++) {
    if (signature->input_buffers[i] != NULL) LiteRtDestroyTensorBuffer(signature->input_buffers[i]);
  }
  for (size_t i = 0; i < signature->num_outputs; i++) {
    if (signature->output_buffers[i] != NULL) LiteRtDestroyTensorBuffer(signature->output_buffers[i]);
  }
  free(signature->inputs);
  free(signature->outputs);
  free(signature->input_buffers);
  free(signature->output_buffers);
}

void tfsd_close(TfsdModel *model) {
  if (model == NULL) return;
  for (size_t i = 0; i < model->num_signatures; i++) free_signature(&model->signatures[i]);
  free(model->signatures);
  if (model->compiled != NULL) LiteRtDestroyCompiledModel(model->compiled);
  if (model->model != NULL) LiteRtDestroyModel(model->model);
  if (model->environment != NULL) LiteRtDestroyEnvironment(model->environment);
  free(model);
}

TfsdSignature *tfsd_signature(TfsdModel *model, const char *name, TfsdError *error) {
  for (size_t i = 0; i < model->num_signatures; i++) {
    if (strcmp(model->signatures[i].name, name) == 0) return &model->signatures[i];
  }
  fail(error, "there is no signature %s", name);
  return NULL;
}

/* Returns the tensor with a name, or NULL. */
static TfsdTensor *find(TfsdTensor *tensors, size_t count, const char *name) {
  for (size_t i = 0; i < count; i++) {
    if (strcmp(tensors[i].name, name) == 0) return &tensors[i];
  }
  return NULL;
}

TfsdTensor *tfsd_input(TfsdSignature *signature, const char *name, TfsdError *error) {
  TfsdTensor *found = find(signature->inputs, signature->num_inputs, name);
  if (found == NULL) fail(error, "%s has no input %s", signature->name, name);
  return found;
}

TfsdTensor *tfsd_output(TfsdSignature *signature, const char *name, TfsdError *error) {
  TfsdTensor *found = find(signature->outputs, signature->num_outputs, name);
  if (found == NULL) fail(error, "%s has no output %s", signature->name, name);
  return found;
}

/* Tells whether a tensor has so many bytes. */
static bool fits(const TfsdTensor *tensor, size_t bytes, TfsdError *error) {
  return tensor->bytes == bytes || fail(error, "%s has %zu bytes; got %zu", tensor->name, tensor->bytes, bytes);
}

void tfsd_clear(TfsdSignature *signature) {
  for (size_t i = 0; i < signature->num_inputs; i++) signature->inputs[i].given = false;
}

bool tfsd_set(TfsdSignature *signature, const char *name, const void *values, size_t bytes, TfsdError *error) {
  TfsdTensor *input = tfsd_input(signature, name, error);
  if (input == NULL || !fits(input, bytes, error)) return false;
  LiteRtTensorBuffer buffer = signature->input_buffers[input - signature->inputs];
  void *memory = NULL;
  if (!CALL(LockTensorBuffer, buffer, &memory, kLiteRtTensorBufferLockModeWrite)) return false;
  memcpy(memory, values, bytes);
  input->given = true;
  return CALL(UnlockTensorBuffer, buffer);
}

/* Adds to `error` what LiteRT collected about a run that failed, on one line. */
static void add_messages(TfsdModel *model, TfsdError *error) {
  char *messages = NULL;
  if (LiteRtCompiledModelGetErrorMessages(model->compiled, &messages) == kLiteRtStatusOk && messages != NULL) {
    size_t used = strlen(error->text), length = strlen(messages);
    while (length > 0 && messages[length - 1] == '\n') messages[--length] = '\0';
    for (size_t i = 0; i < length; i++) {
      if (messages[i] == '\n') messages[i] = ' ';
    }
    if (length > 0) snprintf(error->text + used, sizeof error->text - used, ": %s", messages);
  }
  free(messages);
  LiteRtCompiledModelClearErrors(model->compiled);
}

bool tfsd_run(TfsdModel *model, TfsdSignature *signature, TfsdError *error) {
  for (size_t i = 0; i < signature->num_inputs; i++) {
    if (!signature->inputs[i].given) return fail(error, "%s needs the input %s", signature->name, signature->inputs[i].name);
  }
  tfsd_clear(signature);
  size_t at = (size_t)(signature - model->signatures);
  if (CALL(RunCompiledModel, model->compiled, at, signature->num_inputs, signature->input_buffers, signature->num_outputs,
           signature->output_buffers)) {
    return true;
  }
  add_messages(model, error);
  return false;
}

bool tfsd_get(TfsdSignature *signature, const char *name, void *values, size_t bytes, TfsdError *error) {
  TfsdTensor *output = tfsd_output(signature, name, error);
  if (output == NULL || !fits(output, bytes, error)) return false;
  LiteRtTensorBuffer buffer = signature->output_buffers[output - signature->outputs];
  void *memory = NULL;
  if (!CALL(LockTensorBuffer, buffer, &memory, kLiteRtTensorBufferLockModeRead)) return false;
  memcpy(values, memory, bytes);
  return CALL(UnlockTensorBuffer, buffer);
}

const char *tfsd_dtype(const TfsdTensor *tensor) {
  return tensor->type.element_type == kLiteRtElementTypeInt32 ? "int32" : "float32";
}

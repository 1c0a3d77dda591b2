/* Runs the signatures of a .tflite file by LiteRT, on the CPU, inputs and outputs by name.
 *
 * A file is mapped to memory, not read. One thread at a time may use an open model; models do not share anything.
 * What can fail returns false or NULL and writes a sentence to `error`. */
#ifndef TFSD_RUNTIME_H
#define TFSD_RUNTIME_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "litert.h"

typedef struct {
  char text[512];
} TfsdError;

/* An input or output of a signature; `bytes` of values without gaps, the last dimension's next to each other. */
typedef struct {
  const char *name;
  LiteRtRankedTensorType type;
  size_t bytes;
  bool given; /* an input that got values since the last run */
} TfsdTensor;

typedef struct {
  const char *name;
  size_t num_inputs, num_outputs;
  TfsdTensor *inputs, *outputs;
  LiteRtTensorBuffer *input_buffers, *output_buffers;
} TfsdSignature;

typedef struct {
  LiteRtEnvironment environment;
  LiteRtModel model;
  LiteRtCompiledModel compiled;
  size_t num_signatures;
  TfsdSignature *signatures;
} TfsdModel;

/* Opens a file, to run on so many threads; NULL if that fails. Whoever opens a model closes it.
 *
 * LiteRT trusts what a file says of itself: one that is cut off may end the process, so check its hash before opening it. */
TfsdModel *tfsd_open(const char *path, int threads, TfsdError *error);

/* Frees a model and all it holds; NULL is none. */
void tfsd_close(TfsdModel *model);

/* Returns a signature by its name, or NULL. */
TfsdSignature *tfsd_signature(TfsdModel *model, const char *name, TfsdError *error);

/* Returns an input or output by its name, or NULL. */
TfsdTensor *tfsd_input(TfsdSignature *signature, const char *name, TfsdError *error);
TfsdTensor *tfsd_output(TfsdSignature *signature, const char *name, TfsdError *error);

/* Forgets which inputs got values, as after a run. */
void tfsd_clear(TfsdSignature *signature);

/* Copies `bytes` of values to an input, which must have as many. */
bool tfsd_set(TfsdSignature *signature, const char *name, const void *values, size_t bytes, TfsdError *error);

/* Runs a signature whose inputs all got values since it last ran. */
bool tfsd_run(TfsdModel *model, TfsdSignature *signature, TfsdError *error);

/* Copies `bytes` of values from an output, which must have as many. */
bool tfsd_get(TfsdSignature *signature, const char *name, void *values, size_t bytes, TfsdError *error);

/* Returns "float32" or "int32". */
const char *tfsd_dtype(const TfsdTensor *tensor);

#endif

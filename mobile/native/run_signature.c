/* Runs one signature of a .tflite file on raw values from files, as the tests do to compare this runtime with Python's.
 *
 *   run_signature [--threads N] FILE                                     lists its signatures
 *   run_signature [--threads N] FILE SIGNATURE NAME=DATA ... FOLDER      writes FOLDER/OUTPUT.bin for each output
 *
 * DATA are the values of the input NAME as they lie in memory. Ends with 1 if something fails, which the last line on standard
 * error tells (LiteRT writes there, too), and with 2 if the arguments are wrong. */
#define _POSIX_C_SOURCE 200809L

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "runtime.h"

enum { FAILED = 1, USAGE = 2 };

/* Prints a line on standard error and returns false. */
static bool complain(const char *subject, const char *reason) {
  fprintf(stderr, "run_signature: %s: %s\n", subject, reason);
  return false;
}

/* Returns the milliseconds since some moment. */
static double now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (double)time.tv_sec * 1e3 + (double)time.tv_nsec / 1e6;
}

/* Prints name, type and shape of tensors, a line each. */
static void list(const char *kind, const TfsdTensor *tensors, size_t count) {
  for (size_t i = 0; i < count; i++) {
    printf("  %s %s %s", kind, tensors[i].name, tfsd_dtype(&tensors[i]));
    for (unsigned j = 0; j < tensors[i].type.layout.rank; j++) printf(" %d", (int)tensors[i].type.layout.dimensions[j]);
    printf("\n");
  }
}

/* Prints the signatures of a model. */
static void list_signatures(const TfsdModel *model) {
  for (size_t i = 0; i < model->num_signatures; i++) {
    printf("%s\n", model->signatures[i].name);
    list("input", model->signatures[i].inputs, model->signatures[i].num_inputs);
    list("output", model->signatures[i].outputs, model->signatures[i].num_outputs);
  }
}

/* Fills an input from `assignment`, "NAME=DATA". */
static bool read_input(TfsdSignature *signature, char *assignment) {
  TfsdError error;
  char *path = strchr(assignment, '=');
  if (path == NULL) return complain(assignment, "an input must be NAME=DATA");
  *path++ = '\0';
  TfsdTensor *input = tfsd_input(signature, assignment, &error);
  if (input == NULL) return complain(assignment, error.text);
  FILE *file = fopen(path, "rb");
  if (file == NULL) return complain(path, "cannot be read");
  char *values = malloc(input->bytes + 1); /* one more, to notice a file that is too long */
  size_t got = values == NULL ? 0 : fread(values, 1, input->bytes + 1, file);
  bool done = values != NULL && tfsd_set(signature, assignment, values, got, &error);
  if (!done) complain(path, values == NULL ? "out of memory" : error.text);
  free(values);
  fclose(file);
  return done;
}

/* Writes an output to a file in `folder`. */
static bool write_output(TfsdSignature *signature, const TfsdTensor *output, const char *folder) {
  TfsdError error;
  char path[4096];
  if (snprintf(path, sizeof path, "%s/%s.bin", folder, output->name) >= (int)sizeof path) return complain(folder, "is too long");
  char *values = malloc(output->bytes);
  if (values == NULL) return complain(path, "out of memory");
  bool done = tfsd_get(signature, output->name, values, output->bytes, &error);
  if (!done) complain(output->name, error.text);
  FILE *file = done ? fopen(path, "wb") : NULL;
  if (file != NULL) {
    done = fwrite(values, 1, output->bytes, file) == output->bytes;
    done = fclose(file) == 0 && done;
  }
  free(values);
  return (file != NULL && done) || complain(path, "cannot be written");
}

/* Runs a signature: `arguments` are the inputs and, last, the folder. */
static bool run(TfsdModel *model, const char *name, int count, char **arguments) {
  TfsdError error;
  TfsdSignature *signature = tfsd_signature(model, name, &error);
  if (signature == NULL) return complain(name, error.text);
  for (int i = 0; i < count - 1; i++) {
    if (!read_input(signature, arguments[i])) return false;
  }
  double start = now();
  if (!tfsd_run(model, signature, &error)) return complain(name, error.text);
  printf("ran %s in %.2f ms\n", name, now() - start);
  for (size_t i = 0; i < signature->num_outputs; i++) {
    if (!write_output(signature, &signature->outputs[i], arguments[count - 1])) return false;
  }
  return true;
}

int main(int count, char **arguments) {
  int threads = 1, at = 1;
  if (count > 2 && strcmp(arguments[1], "--threads") == 0) {
    threads = atoi(arguments[2]);
    at = 3;
  }
  int left = count - at;
  if (left < 1 || left == 2 || strncmp(arguments[at], "--", 2) == 0) {
    fprintf(stderr, "usage: run_signature [--threads N] FILE [SIGNATURE [NAME=DATA ...] FOLDER]\n");
    return USAGE;
  }
  TfsdError error;
  double start = now();
  TfsdModel *model = tfsd_open(arguments[at], threads, &error);
  if (model == NULL) {
    complain(arguments[at], error.text);
    return FAILED;
  }
  bool done = true;
  if (left == 1) {
    list_signatures(model);
  } else {
    printf("opened in %.2f ms\n", now() - start);
    done = run(model, arguments[at + 1], left - 2, arguments + at + 2);
  }
  tfsd_close(model);
  return done ? 0 : FAILED;
}

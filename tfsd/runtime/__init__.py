"""The process and the libraries below: start-up, memory, backends, private names of TensorFlow and others."""

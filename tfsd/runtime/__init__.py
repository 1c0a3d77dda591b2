"""Start-up, memory, backends, and the private names of TensorFlow and other libraries that are used."""

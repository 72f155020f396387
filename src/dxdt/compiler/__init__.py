"""From a traced loop to a function: native code on the CPU, captured graphs on CUDA. Knows no equation."""

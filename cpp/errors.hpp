// Errors that reach Python as those of fastvae/errors.py.
#pragma once
#include <stdexcept>

namespace fastvae {

// What this machine or process does not have; BackendError in Python.
struct Unavailable : std::runtime_error {
  using std::runtime_error::runtime_error;
};

}  // namespace fastvae

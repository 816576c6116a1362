// Self-registration: each op's binding adds itself to the module eqtp._native; no central list to edit.
#pragma once
#include <pybind11/pybind11.h>

namespace eqtp {
struct Binding {
  using Define = void (*)(pybind11::module_&);
  explicit Binding(Define define) : define(define), next(first()) { first() = this; }
  static Binding*& first() {
    static Binding* head = nullptr;
    return head;
  }
  Define define;
  Binding* next;
};
}  // namespace eqtp

#define EQTP_BINDING(name)                              \
  static void name(pybind11::module_&);                 \
  static const ::eqtp::Binding binding_of_##name(name); \
  static void name(pybind11::module_& m)

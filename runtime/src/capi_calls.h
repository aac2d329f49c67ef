// What every call of the C interface begins and ends with: the only catch, and structs of callers that are older or
// newer. Only capi*.cpp include it.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <exception>
#include <new>
#include <string>

#include "base/error.h"
#include "sbr/sbr.h"

namespace sbr::capi {

// ---- errors ----

inline sbr_status report(sbr_error* error, sbr_status status, const char* message) {
  if (error == nullptr || error->struct_size <= offsetof(sbr_error, message)) return status;
  const size_t capacity = std::min<size_t>(error->struct_size, sizeof *error) - offsetof(sbr_error, message);
  const size_t n = std::min(std::strlen(message), capacity - 1);
  error->status = status;
  std::memcpy(error->message, message, n);
  error->message[n] = '\0';
  return status;
}

// Runs a call's body; whatever it throws becomes a status and a sentence.
template <typename Body>
sbr_status guarded(sbr_error* error, Body body) {
  try {
    body();
    return SBR_OK;
  } catch (const Error& e) {
    return report(error, e.status(), e.what());
  } catch (const std::bad_alloc&) {
    return report(error, SBR_ERR_MEMORY, "Out of memory");
  } catch (const std::exception& e) {
    return report(error, SBR_ERR_INTERNAL, (std::string("Internal error: ") + e.what()).c_str());
  } catch (...) {
    return report(error, SBR_ERR_INTERNAL, "Internal error of an unknown kind");
  }
}

template <typename T>
void require(T* pointer, const char* argument) {
  if (pointer == nullptr) throw Error(SBR_ERR_ARGUMENT, std::string(argument) + " is NULL");
}

// ---- structs of the caller, which may be older (shorter) or newer (longer) than this library's ----

constexpr uint32_t kSmallestStruct = 2 * sizeof(uint32_t);  // struct_size and one member

inline uint32_t require_struct(const void* given, const char* argument) {
  require(given, argument);
  uint32_t size;
  std::memcpy(&size, given, sizeof size);
  if (size < kSmallestStruct) {
    throw Error(SBR_ERR_ARGUMENT, std::string(argument) + "->struct_size is " + std::to_string(size) +
                                      "; set it to sizeof(*" + argument + ")");
  }
  return size;
}

// Padding has a name, so that a later option can take its place: who sets it means something that we do not know.
template <typename T>
auto require_reserved_zero(const T& value, const char* argument, int) -> decltype(value.reserved, void()) {
  if (value.reserved == 0) return;
  throw Error(SBR_ERR_ARGUMENT, std::string(argument) + "->reserved is " + std::to_string(value.reserved) +
                                    ", expected 0; fill the struct with its _init function, or with zeros");
}
template <typename T>
void require_reserved_zero(const T&, const char*, long) {}

// The caller's members over `defaults`. A longer struct may only be used if what this library does not know is zero.
template <typename T>
T read_struct(const T* given, const T& defaults, const char* argument) {
  const uint32_t size = require_struct(given, argument);
  const auto* bytes = reinterpret_cast<const unsigned char*>(given);
  for (size_t i = sizeof(T); i < size; ++i) {
    if (bytes[i] == 0) continue;
    throw Error(SBR_ERR_ARGUMENT, std::string(argument) +
                                      " sets members that this version of the library does not know (struct_size " +
                                      std::to_string(size) + ", known: " + std::to_string(sizeof(T)) + ")");
  }
  T value = defaults;
  std::memcpy(&value, given, std::min<size_t>(size, sizeof(T)));
  value.struct_size = sizeof(T);
  require_reserved_zero(value, argument, 0);
  return value;
}

// As much of `value` as the caller has room for; struct_size stays the caller's.
template <typename T>
void write_struct(const T& value, T* out) {
  constexpr size_t first = sizeof(uint32_t);
  const size_t size = std::min<size_t>(out->struct_size, sizeof(T));
  std::memcpy(reinterpret_cast<unsigned char*>(out) + first, reinterpret_cast<const unsigned char*>(&value) + first,
              size - first);
}

// A terminated string of a fixed array; the caller may have filled the array to the brim.
template <size_t N>
void require_terminated(const char (&text)[N], const char* member) {
  if (std::memchr(text, '\0', N) == nullptr)
    throw Error(SBR_ERR_ARGUMENT, std::string(member) + " is not NUL-terminated");
}

}  // namespace sbr::capi

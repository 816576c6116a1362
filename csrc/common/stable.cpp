#include "common/stable.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <utility>

// The functions of torch that are called, as torch declares them. 0: success
extern "C" {
using Error = int32_t;
struct ListHandle;
struct StringHandle;
struct LibraryHandle;
using Boxed = void (*)(uint64_t*, uint64_t, uint64_t);

Error aoti_torch_delete_tensor_object(eqtp::TensorHandle*);
Error aoti_torch_get_dim(eqtp::TensorHandle*, int64_t*);
Error aoti_torch_get_sizes(eqtp::TensorHandle*, int64_t**);
Error aoti_torch_get_strides(eqtp::TensorHandle*, int64_t**);
Error aoti_torch_get_dtype(eqtp::TensorHandle*, int32_t*);
Error aoti_torch_empty_strided(int64_t dim, const int64_t* sizes, const int64_t* strides, int32_t dtype,
                               int32_t device_type, int32_t device_index, eqtp::TensorHandle**);
Error aoti_torch_copy_(eqtp::TensorHandle* to, eqtp::TensorHandle* from, int32_t non_blocking);
Error torch_get_const_data_ptr(eqtp::TensorHandle*, const void**);
size_t aoti_torch_dtype_element_size(int32_t);
int32_t aoti_torch_dtype_float64();
int32_t aoti_torch_dtype_int64();
int32_t aoti_torch_device_type_cpu();

Error torch_list_size(ListHandle*, size_t*);
Error torch_list_get_item(ListHandle*, size_t, uint64_t*);
Error torch_delete_list(ListHandle*);
Error torch_string_length(StringHandle*, size_t*);
Error torch_string_c_str(StringHandle*, const char**);
Error torch_delete_string(StringHandle*);

Error torch_get_num_threads(uint32_t*);
Error aoti_torch_library_init_fragment(const char* name, const char* file, uint32_t line, LibraryHandle**);
Error aoti_torch_library_init_impl(const char* name, const char* key, const char* file, uint32_t line, LibraryHandle**);
Error aoti_torch_library_def(LibraryHandle*, const char* schema);
Error torch_library_impl(LibraryHandle*, const char* name, Boxed, uint64_t version);
Error torch_call_dispatcher(const char* name, const char* overload, uint64_t* stack, uint64_t version);
}

namespace eqtp {

static constexpr uint64_t VERSION = (2ull << 56) | (10ull << 48);  // of torch, whose conventions are used

static void check(Error error, const char* what) {
  if (error) throw std::runtime_error(std::string("eqtp: torch failed to ") + what);
}

void fail(const char* op, const std::string& text) { throw std::runtime_error(std::string(op) + ": " + text); }

// ---- tensors
Tensor::Tensor(TensorHandle* owned) : handle_(owned) {
  check(aoti_torch_get_dim(handle_, &dim_), "read a tensor");
  check(aoti_torch_get_sizes(handle_, &sizes_), "read a tensor");
  check(aoti_torch_get_strides(handle_, &strides_), "read a tensor");
  check(torch_get_const_data_ptr(handle_, &data_), "read a tensor");
}
Tensor::Tensor(Tensor&& other) noexcept { *this = std::move(other); }
Tensor& Tensor::operator=(Tensor&& other) noexcept {
  std::swap(handle_, other.handle_);
  dim_ = other.dim_, sizes_ = other.sizes_, strides_ = other.strides_, data_ = other.data_;
  return *this;
}
Tensor::~Tensor() {
  if (handle_) aoti_torch_delete_tensor_object(handle_);
}
TensorHandle* Tensor::release() { return std::exchange(handle_, nullptr); }

static bool poison = false;
extern "C" __attribute__((visibility("default"))) void eqtp_poison(bool on) { poison = on; }

Tensor Tensor::empty(const std::vector<int64_t>& shape, int32_t dtype) {
  std::vector<int64_t> strides(shape.size());
  int64_t next = 1;
  int64_t numel = 1;
  for (size_t d = shape.size(); d--; next *= std::max<int64_t>(shape[d], 1)) strides[d] = next, numel *= shape[d];
  TensorHandle* made = nullptr;
  check(aoti_torch_empty_strided(int64_t(shape.size()), shape.data(), strides.data(), dtype,
                                 aoti_torch_device_type_cpu(), 0, &made),
        "make a tensor");
  Tensor tensor(made);
  if (poison) std::memset(tensor.mutable_data<char>(), 0xff, size_t(numel) * aoti_torch_dtype_element_size(dtype));
  return tensor;
}

int64_t Tensor::itemsize() const { return int64_t(aoti_torch_dtype_element_size(dtype())); }
int32_t Tensor::dtype() const {
  int32_t dtype = 0;
  check(aoti_torch_get_dtype(handle_, &dtype), "read a tensor");
  return dtype;
}
bool Tensor::is_float64() const { return dtype() == aoti_torch_dtype_float64(); }
bool Tensor::is_int64() const { return dtype() == int64(); }
int32_t Tensor::int64() { return aoti_torch_dtype_int64(); }

Tensor Tensor::contiguous(int32_t dtype) const {
  Tensor copy = empty(shape(), dtype);
  check(aoti_torch_copy_(copy.handle_, handle_, 0), "copy a tensor");
  return copy;
}
Tensor Tensor::contiguous_rows() && {
  if (dim_ != 2)
    fail("eqtp", "a tensor [rows, columns] was expected, got one of " + std::to_string(dim_) + " dimensions");
  return size(1) < 2 || stride(1) == 1 ? std::move(*this) : contiguous(dtype());
}

// ---- arguments
template <class T>
static T* handle(StableValue value) {
  return reinterpret_cast<T*>(value);
}

static std::string text_of(StableValue value) {
  const char* data = nullptr;
  size_t length = 0;
  check(torch_string_c_str(handle<StringHandle>(value), &data), "read a string");
  check(torch_string_length(handle<StringHandle>(value), &length), "read a string");
  return {data, length};
}

static std::vector<int64_t> list_of(ListHandle* list, bool flags) {
  size_t size = 0;
  check(torch_list_size(list, &size), "read a list");
  std::vector<int64_t> found(size);
  for (size_t i = 0; i < size; ++i) {
    StableValue value = 0;
    check(torch_list_get_item(list, i, &value), "read a list");
    found[i] = flags ? int64_t(value & 1) : int64_t(value);
  }
  return found;
}

static Tensor optional_tensor(StableValue value) {
  auto* inner = handle<StableValue>(value);
  if (!inner) return {};
  Tensor found(handle<TensorHandle>(*inner));
  delete inner;
  return found;
}

// A letter for each argument: t Tensor, o Tensor?, b bool, B bool[], I int[], s str, f str family
std::string detail::types_of(const char* schema) {
  static const std::pair<const char*, char> known[] = {{"Tensor? ", 'o'}, {"Tensor ", 't'}, {"bool[] ", 'B'},
                                                       {"int[] ", 'I'},   {"bool ", 'b'},   {"str family)", 'f'},
                                                       {"str ", 's'}};
  std::string types;
  for (const char* at = schema + 1; at; at = std::strstr(at, ", "), at = at ? at + 2 : at)
    for (auto [name, letter] : known)
      if (!std::strncmp(at, name, std::strlen(name))) {
        types += letter;
        break;
      }
  return types;
}

Arguments::Arguments(const StableValue* stack, const std::string& types) {
  for (const char type : types) {
    const StableValue value = *stack++;
    switch (type) {
      case 't': tensors_.emplace_back(handle<TensorHandle>(value)); break;
      case 'o': tensors_.push_back(optional_tensor(value)); break;
      case 'b': flags_.push_back(value & 1); break;
      case 's':
      case 'f':
        texts_.push_back(text_of(value));
        torch_delete_string(handle<StringHandle>(value));
        break;
      default:
        lists_.push_back(list_of(handle<ListHandle>(value), type == 'B'));
        torch_delete_list(handle<ListHandle>(value));
    }
  }
}

// ---- ops
void detail::call(const Op& op, const std::string& types, StableValue* stack) {
  if (types.back() == 'f' && text_of(stack[types.size() - 1]) != "native") {
    const std::string python = std::string("eqtp::python_") + op.name;
    return check(torch_call_dispatcher(python.c_str(), "", stack, VERSION), ("call " + python).c_str());
  }
  Results results;
  {
    Arguments in(stack, types);
    op.run(in, results);
  }
  for (Tensor& result : results) *stack++ = reinterpret_cast<StableValue>(result.release());
}

// What is registered lasts as long as its library: each is there until the process ends
void detail::define(const Op& op, Boxed boxed) {
  static LibraryHandle *schemas = nullptr, *kernels = nullptr;
  if (!schemas) {
    check(aoti_torch_library_init_fragment("eqtp", __FILE__, __LINE__, &schemas), "register ops");
    check(aoti_torch_library_init_impl("eqtp", "CPU", __FILE__, __LINE__, &kernels), "register kernels");
  }
  check(aoti_torch_library_def(schemas, (std::string(op.name) + op.schema).c_str()), op.name);
  check(torch_library_impl(kernels, op.name, boxed, VERSION), op.name);
}

int num_threads() {
  uint32_t threads = 1;
  check(torch_get_num_threads(&threads), "count threads");
  return int(threads);
}

}  // namespace eqtp

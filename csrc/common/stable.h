// Ops of torch in C++, through torch's stable C interface: one library serves every torch from 2.10 on, and needs
// nothing of torch to be built. The functions are those of torch/csrc/inductor/aoti_torch/c/shim.h and
// torch/csrc/stable/c/shim.h.
//
// An op says its name, schema and kernel in csrc/<engine>/ops.cpp:
//
//   static void run(Arguments& in, Results& out) { Tensor x = in.tensor(); ... out.push_back(std::move(y)); }
//   static constexpr Op op{.name = "segment_sum", .schema = "(Tensor x, ..., str family) -> Tensor", .run = run};
//   static const Registered<op> registered;
//
// An op whose last argument is `str family` runs here for the family native; others are kernels of Python, which has
// the same op under the name python_<name> (eqtp/ops/autograd.py).
#pragma once
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace eqtp {

using StableValue = uint64_t;  // an argument or a result: a number, or a handle
struct TensorHandle;  // opaque

// An owned tensor, or none
class Tensor {
 public:
  Tensor() = default;
  explicit Tensor(TensorHandle* owned);
  Tensor(Tensor&& other) noexcept;
  Tensor& operator=(Tensor&& other) noexcept;
  ~Tensor();

  // A new contiguous tensor on the CPU; `dtype` as of another tensor. Tests fill it with NaN: eqtp_poison(true)
  static Tensor empty(const std::vector<int64_t>& shape, int32_t dtype);
  Tensor empty_like() const { return empty(shape(), dtype()); }

  explicit operator bool() const { return handle_ != nullptr; }
  int64_t dim() const { return dim_; }
  int64_t size(int64_t d) const { return sizes_[d]; }
  int64_t stride(int64_t d) const { return strides_[d]; }
  std::vector<int64_t> shape() const { return {sizes_, sizes_ + dim_}; }
  int64_t itemsize() const;  // bytes of an element
  int32_t dtype() const;
  bool is_float64() const;
  bool is_int64() const;
  static int32_t int64();  // the dtype
  Tensor contiguous(int32_t dtype) const;  // a copy
  Tensor contiguous_rows() &&;  // [rows, n]: itself, or a copy if the elements of a row do not follow each other
  template <class T>
  const T* data() const {
    return static_cast<const T*>(data_);
  }
  template <class T>
  T* mutable_data() const {
    return const_cast<T*>(data<T>());
  }
  TensorHandle* release();

 private:
  TensorHandle* handle_ = nullptr;
  int64_t dim_ = 0, *sizes_ = nullptr, *strides_ = nullptr;
  const void* data_ = nullptr;
};

// The arguments of a call: those of each type are read one after another, in the order of the schema
class Arguments {
 public:
  // Takes them from the stack. types: a letter each, `types_of` the schema
  Arguments(const StableValue* stack, const std::string& types);
  Tensor tensor() { return std::move(tensors_[next_tensor_++]); }  // none, if it is a Tensor? that is not given
  bool flag() { return flags_[next_flag_++]; }
  std::vector<int64_t> integers() { return std::move(lists_[next_list_++]); }  // of bool[] and int[]
  std::string text() { return std::move(texts_[next_text_++]); }

 private:
  std::vector<Tensor> tensors_;
  std::vector<bool> flags_;
  std::vector<std::vector<int64_t>> lists_;
  std::vector<std::string> texts_;
  size_t next_tensor_ = 0, next_flag_ = 0, next_list_ = 0, next_text_ = 0;
};

using Results = std::vector<Tensor>;

struct Op {
  const char* name;
  const char* schema;
  void (*run)(Arguments&, Results&);
};

// Throws std::runtime_error: op: text
[[noreturn]] void fail(const char* op, const std::string& text);

namespace detail {
std::string types_of(const char* schema);
void call(const Op& op, const std::string& types, StableValue* stack);
void define(const Op& op, void (*boxed)(StableValue*, uint64_t, uint64_t));
}  // namespace detail

// Registers an op when the library is loaded
template <const Op& op>
struct Registered {
  Registered() {
    detail::define(op, [](StableValue* stack, uint64_t, uint64_t) {
      static const std::string types = detail::types_of(op.schema);
      detail::call(op, types, stack);
    });
  }
};

int num_threads();  // torch.get_num_threads()

}  // namespace eqtp

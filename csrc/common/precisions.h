// Numbers of a plan in the precision of each kernel, for bindings.
#pragma once
#include <vector>

namespace eqtp {

// Rounded once, from float64
class BothPrecisions {
 public:
  explicit BothPrecisions(const std::vector<double>& numbers) : f64_(numbers), f32_(numbers.begin(), numbers.end()) {}
  template <class T>
  const T* data() const {
    if constexpr (sizeof(T) == sizeof(float)) return f32_.data();
    else return f64_.data();
  }

 private:
  std::vector<double> f64_;
  std::vector<float> f32_;
};

}  // namespace eqtp

#include "common/record.h"

#include <cstdint>
#include <cstdlib>
#include <stdexcept>

namespace eqtp {

static constexpr size_t DIGITS = 16;  // of the hash, hexadecimal

uint64_t Record::hash(const std::string& text) {
  const size_t key = text.find('\n');
  if (key == std::string::npos || text.size() < key + 1 + DIGITS)
    throw std::runtime_error("eqtp: this text does not describe a computation (eqtp.plans.record.record makes one)");
  return std::strtoull(text.substr(key + 1, DIGITS).c_str(), nullptr, 16);
}

Record::Record(const std::string& text) {
  hash(text);
  for (size_t begin = text.find('\n', text.find('\n') + 1), end; begin != std::string::npos; begin = end) {
    end = text.find('\n', ++begin);
    lines_.push_back(text.substr(begin, end - begin));
  }
}

const std::string& Record::line(size_t n) const {
  if (n >= lines_.size()) throw std::runtime_error("eqtp: the description of a computation is cut short");
  return lines_[n];
}

// The numbers of a line, each read by `read(text, end)`
template <class T, class F>
static std::vector<T> values(const std::string& line, F read) {
  std::vector<T> found;
  const char* at = line.c_str();
  for (char* end = nullptr;; at = end) {
    const T value = read(at, &end);
    if (end == at) break;
    found.push_back(value);
  }
  return found;
}

std::vector<int64_t> Record::integers(size_t n) const {
  return values<int64_t>(line(n), [](const char* at, char** end) { return int64_t(std::strtoll(at, end, 10)); });
}

std::vector<double> Record::numbers(size_t n) const {
  return values<double>(line(n), [](const char* at, char** end) { return std::strtod(at, end); });
}

}  // namespace eqtp

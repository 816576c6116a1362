// What is computed, as text from Python (eqtp/plans/record.py): a key, a hash, then lines of numbers.
#pragma once
#include <cstdint>
#include <cstring>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

namespace eqtp {

class Record {
 public:
  explicit Record(const std::string& text);
  std::vector<int64_t> integers(size_t line) const;
  std::vector<double> numbers(size_t line) const;  // hexadecimal, so that nothing is rounded

  // The 64 bits of the hash line. Throws std::runtime_error if there is none
  static uint64_t hash(const std::string& text);

 private:
  const std::string& line(size_t n) const;
  std::vector<std::string> lines_;
};

// What T(Record(text)) is, made once for each text and kept
template <class T>
const T& kept(const std::string& text) {
  struct Hash {
    size_t operator()(const std::string& s) const { return size_t(Record::hash(s)); }
  };
  static std::mutex mutex;
  static std::unordered_map<std::string, std::unique_ptr<const T>, Hash> known;
  const std::lock_guard<std::mutex> lock(mutex);
  std::unique_ptr<const T>& found = known[text];
  if (!found) found = std::make_unique<const T>(Record(text));
  return *found;
}

}  // namespace eqtp

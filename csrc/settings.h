// A description in words, "kind name=value name=value", and its settings by name.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>

namespace dgc {

class Settings {
 public:
  // Throws std::invalid_argument if a word after the first is not name=value, or a name comes twice.
  explicit Settings(const std::string& description);

  const std::string& kind() const { return kind_; }

  // The value of a setting, which counts as read. Each throws std::invalid_argument naming the setting, its value
  // and what is allowed.
  std::string word(const std::string& name);
  size_t whole(const std::string& name, size_t low, size_t high);
  double number(const std::string& name, double low, double high);
  bool flag(const std::string& name);

  bool has(const std::string& name) const { return values_.count(name) != 0; }

  // Throws if some setting has not been read: a misspelt one is not ignored.
  void done() const;

 private:
  std::string kind_;
  std::map<std::string, std::string> values_;
  std::map<std::string, bool> read_;
};

}  // namespace dgc

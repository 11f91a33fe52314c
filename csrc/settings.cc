#include "settings.h"

#include <algorithm>
#include <locale>
#include <sstream>
#include <stdexcept>

namespace dgc {
namespace {

[[noreturn]] void refuse(const std::string& name, const std::string& value, const std::string& allowed) {
  throw std::invalid_argument(name + " is " + value + "; allowed: " + allowed);
}

std::string text(double x) {
  std::ostringstream out;
  out.imbue(std::locale::classic());
  out << x;
  return out.str();
}

}  // namespace

Settings::Settings(const std::string& description) {
  std::istringstream words(description);
  words >> kind_;
  for (std::string word; words >> word;) {
    const size_t equals = word.find('=');
    if (equals == std::string::npos || equals == 0) refuse("setting", word, "name=value");
    if (!values_.emplace(word.substr(0, equals), word.substr(equals + 1)).second)
      refuse("setting", word, "each name once");
  }
}

std::string Settings::word(const std::string& name) {
  const auto found = values_.find(name);
  if (found == values_.end()) refuse(name, "missing", "a value for " + kind_);
  read_[name] = true;
  return found->second;
}

size_t Settings::whole(const std::string& name, size_t low, size_t high) {
  const std::string value = word(name);
  const std::string allowed = std::to_string(low) + " to " + std::to_string(high);
  const bool digits = !value.empty() && value.size() < 19 &&
                      std::all_of(value.begin(), value.end(), [](char c) { return c >= '0' && c <= '9'; });
  if (!digits) refuse(name, value, allowed);
  const size_t number = std::stoull(value);
  if (number < low || number > high) refuse(name, value, allowed);
  return number;
}

double Settings::number(const std::string& name, double low, double high) {
  const std::string value = word(name);
  std::istringstream in(value);
  in.imbue(std::locale::classic());
  double number = 0;
  if (!(in >> number) || !in.eof() || !(number >= low && number <= high))
    refuse(name, value, text(low) + " to " + text(high));
  return number;
}

bool Settings::flag(const std::string& name) { return whole(name, 0, 1) == 1; }

void Settings::done() const {
  for (const auto& [name, value] : values_) {
    if (read_.count(name) == 0) refuse("setting", name + "=" + value, "none of this name for " + kind_);
  }
}

}  // namespace dgc

// GANFAST_CUDA, and its other way in for benchmarks/tune_cuda.py.
#include "cuda/settings.h"

#include <cstdlib>
#include <sstream>
#include <stdexcept>

namespace ganfast {
namespace {

struct Chosen {
  std::string error;  // first: parsing writes to it
  Settings settings;

  explicit Chosen(const char* text) : settings(parse_settings(text ? text : "", error)) {}
};

Chosen& chosen() {
  static Chosen of_process(std::getenv("GANFAST_CUDA"));
  return of_process;
}

std::string known_names() {
  std::string names;
  for (const Setting& setting : setting_table) {
    names += (names.empty() ? "" : ", ") + std::string(setting.name);
  }
  return names;
}

// Sets one "name=value"; returns what is wrong with it.
std::string apply(const std::string& item, Settings& settings) {
  const size_t equals = item.find('=');
  const std::string name = item.substr(0, equals);
  for (const Setting& setting : setting_table) {
    if (name != setting.name) continue;
    const std::string value = equals == std::string::npos ? "" : item.substr(equals + 1);
    char* end = nullptr;
    const long number = std::strtol(value.c_str(), &end, 10);
    const bool in_range = number >= setting.least && number <= setting.most;
    const bool allowed = !setting.power_of_two || (number & (number - 1)) == 0;
    if (!value.empty() && *end == '\0' && in_range && allowed) {
      settings.*setting.value = static_cast<int>(number);
      return "";
    }
    return "GANFAST_CUDA: " + name + " must be a " +
           (setting.power_of_two ? "power of two" : "number") + " from " +
           std::to_string(setting.least) + " to " + std::to_string(setting.most) + ", got '" +
           value + "'";
  }
  return "GANFAST_CUDA has no setting '" + name + "'; it knows " + known_names();
}

}  // namespace

Settings parse_settings(const std::string& text, std::string& error) {
  Settings settings;
  std::istringstream items(text);
  for (std::string item; error.empty() && items >> item;) error = apply(item, settings);
  return settings;
}

const Settings& settings() {
  const Chosen& of_process = chosen();
  if (!of_process.error.empty()) throw std::runtime_error(of_process.error);
  return of_process.settings;
}

}  // namespace ganfast

// Replaces this process's settings, those not named by their defaults; not while ops run. Returns
// what is wrong with the text, which is then without effect, or an empty text.
extern "C" __attribute__((visibility("default"))) const char* ganfast_cuda_configure(
    const char* text) {
  static std::string error;
  const ganfast::Chosen wanted(text);
  error = wanted.error;
  if (error.empty()) ganfast::chosen() = wanted;
  return error.c_str();
}

// Returns "name=value name=value" of every setting of this process.
extern "C" __attribute__((visibility("default"))) const char* ganfast_cuda_settings() {
  static std::string text;
  text.clear();
  for (const ganfast::Setting& setting : ganfast::setting_table) {
    text += (text.empty() ? "" : " ") + std::string(setting.name) + "=" +
            std::to_string(ganfast::chosen().settings.*setting.value);
  }
  return text.c_str();
}

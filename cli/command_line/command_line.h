// SPDX-License-Identifier: LGPL-2.1-or-later
//
// What our programs need of CLI11. Its header is included by one file alone: every file that includes it
// compiles all of it, which takes longer than the rest of a program.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace CLI {
class App;
}

namespace checkpointd {

enum class Presence { kOptional, kRequired };

// A verb of a command line. A handle: it may be copied, and lives as long as its CommandLine. What is
// given by reference is set while the command line is parsed. A name without dashes is a positional.
class Verb {
  public:
    explicit Verb(CLI::App& app) : app_(&app) {}

    Verb add_verb(const std::string& name, const std::string& help);
    // At least `least` and at most `most` verbs below this one must be chosen.
    void require_verbs(size_t least, size_t most);
    bool chosen() const;
    // Called after the whole line has been parsed, if this verb was chosen.
    void when_chosen(std::function<void()> action);

    void add_text(const std::string& name, std::string& value, const std::string& help,
                  Presence presence = Presence::kOptional);
    void add_texts(const std::string& name, std::vector<std::string>& values,
                   const std::string& help, Presence presence = Presence::kOptional);
    void add_number(const std::string& name, uint32_t& value, const std::string& help,
                    Presence presence = Presence::kOptional);
    void add_flag(const std::string& names, bool& value, const std::string& help);
    // --help shows what `value` is now.
    void add_text_with_default(const std::string& name, std::string& value, const std::string& help);
    // --help does not show it.
    void add_hidden_text(const std::string& name, std::string& value);

  protected:
    CLI::App* app_;
};

class CommandLine : public Verb {
  public:
    // `name` may be empty: it is argv[0] then. Has --help and --version.
    CommandLine(const std::string& description, const std::string& name, const std::string& version);
    CommandLine(const CommandLine&) = delete;
    CommandLine& operator=(const CommandLine&) = delete;
    ~CommandLine();

    // Options of the whole line may stand behind a verb too.
    void let_options_follow_verbs();
    void set_footer(const std::string& text);
    // The status to exit with, if all has been said: usage, version, or what is wrong.
    std::optional<int> parse(int argc, char** argv);

  private:
    std::unique_ptr<CLI::App> owned_;
};

}  // namespace checkpointd

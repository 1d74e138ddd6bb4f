// SPDX-License-Identifier: LGPL-2.1-or-later
//
// Text of unit drop-ins. Everything that comes from outside is quoted here and nowhere else.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "core/base/error.h"

namespace checkpointd {

// The one file name that we use; it sorts behind the administrator's own drop-ins.
inline constexpr std::string_view kDropInName = "zz-checkpointd.conf";
// Where drop-ins that must not survive a reboot live.
inline constexpr std::string_view kRuntimeUnitDir = "/run/systemd/system";

// One word of a command line: always in double quotes, with C escapes for what is not printable ASCII,
// and '%' doubled (systemd.service(5) "Command lines", systemd.syntax(7) "Quoting").
std::string quote_word(std::string_view word);
// The same for a word that must come out unchanged although `$VARIABLES` are expanded: '$' doubled.
std::string quote_literal_word(std::string_view word);

// A value of a plain setting: '%' doubled. kBadInput for line ends and other control characters, which no
// setting can hold.
Result<std::string> escape_value(std::string_view value);

// Collects lines "Key=value" under sections. Order is kept; the empty value resets a list.
class DropIn {
  public:
    explicit DropIn(std::string why) : why_(std::move(why)) {}
    void section(std::string_view name);
    // `raw` must be escaped already (or be a literal of ours).
    void set(std::string_view key, std::string_view raw);
    // Settings of a service that ends by SIGKILL, at our order or with us: a clean end after which nothing
    // of it runs, no command and no restart. Notifications may come from whom we send them for.
    void set_quiet_end();
    // Sections that systemd has written itself.
    void include(std::string_view text);
    // Nothing of the unit's but its main command, and no second try. How systemd ends processes stays as it
    // is: by that a unit that failed is told from one that was stopped.
    void set_bare_start();
    std::string text() const;

  private:
    std::string why_;
    std::string body_;
};

// Path of our drop-in of `unit` below `unit_dir` (kRuntimeUnitDir, or a generator's output directory).
std::string drop_in_path(std::string_view unit_dir, std::string_view unit);

// Is this a valid name of a loadable unit (systemd.unit(5)): ASCII letters, digits and ":-_.\@", a known
// suffix, at most 255 bytes? Names are parts of paths, so nothing else may pass.
bool is_valid_unit_name(std::string_view name);

}  // namespace checkpointd

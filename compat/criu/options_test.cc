// SPDX-License-Identifier: LGPL-2.1-or-later
#include "compat/criu/options.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <regex>

#include "core/base/io.h"

namespace checkpointd::criu {
namespace {

Result<Options> parse(std::vector<std::string> words) {
    words.insert(words.begin(), "criu");
    std::vector<char*> argv;
    for (std::string& word : words)
        argv.push_back(word.data());
    argv.push_back(nullptr);
    return parse_command_line(static_cast<int>(words.size()), argv.data());
}

TEST(CommandLine, ActionMayStandAnywhere) {
    for (const auto& words : {std::vector<std::string>{"dump", "-t", "7", "-D", "x"},
                       {"-t", "7", "dump", "-D", "x"},
                       {"-t", "7", "-D", "x", "dump"}}) {
        auto options = parse(words);
        ASSERT_TRUE(options) << options.error().text();
        EXPECT_EQ(options->action, "dump");
        EXPECT_EQ(options->tree, 7);
        EXPECT_EQ(options->images_dir, "x");
    }
}

TEST(CommandLine, VerbositySpellings) {
    EXPECT_EQ(parse({"check", "-v4"})->verbosity, 4);
    EXPECT_EQ(parse({"check", "-vvv"})->verbosity, 3);
    EXPECT_EQ(parse({"check", "-verbosity=0"})->verbosity, 0);
    EXPECT_EQ(parse({"check", "--verbosity=4"})->verbosity, 4);
    EXPECT_EQ(parse({"check", "-v"})->verbosity, 1);
}

TEST(CommandLine, RefusesByName) {
    EXPECT_NE(parse({"dump", "-t", "1", "--lazy-pages"}).error().line().find("--lazy-pages"),
              std::string::npos);
    EXPECT_NE(parse({"swrk", "3"}).error().line().find("swrk"), std::string::npos);
    EXPECT_NE(parse({"dump"}).error().line().find("--tree"), std::string::npos);
    EXPECT_NE(parse({"dump", "-t", "x"}).error().line().find("'x'"), std::string::npos);
    EXPECT_FALSE(parse({"dump", "-t", "1", "--manage-cgroups=full"}));
    EXPECT_FALSE(parse({"dump", "-t"}));
    EXPECT_FALSE(parse({}));
}

TEST(CommandLine, DirectoryOfPlugins) {
    EXPECT_EQ(parse({"dump", "-t", "7", "-L", "/plugins"})->libdir, "/plugins");
    EXPECT_EQ(parse({"restore", "--libdir=/plugins"})->libdir, "/plugins");
    EXPECT_EQ(parse({"restore"})->libdir, "");
}

TEST(CommandLine, ExternalKeys) {
    auto options = parse({"restore", "--external", "unix[12]", "--inherit-fd", "fd[5]:socket:[12]"});
    ASSERT_TRUE(options) << options.error().text();
    EXPECT_TRUE(options->externals.contains("socket:[12]"));
    EXPECT_EQ(options->inherited.at("socket:[12]"), 5);
    EXPECT_FALSE(parse({"restore", "--inherit-fd", "5:socket:[12]"}));
    EXPECT_FALSE(parse({"restore", "--external", "mnt[]:s"}));
}

std::set<std::string> options_in(const std::string& text) {
    static const std::regex option("--([a-z]+(-[a-z]+)*)");
    std::set<std::string> found;
    for (std::sregex_iterator at(text.begin(), text.end(), option), end; at != end; ++at)
        found.insert((*at)[1]);
    return found;
}

// A section of the man page, with hyphens for what roff writes for them.
std::string man_section(const std::string& title) {
    const std::string page = read_file(AT_FDCWD, MAN_PAGE).value();
    const size_t begin = page.find("\n.SH " + title);
    const std::string section = page.substr(begin, page.find("\n.SH ", begin + 1) - begin);
    return std::regex_replace(section, std::regex(R"(\\-)"), "-");
}

TEST(CommandLine, TheManPageHasTheOptionsThatThereAre) {
    const std::string section = man_section("OPTIONS");
    const size_t rest = section.find("\nAccepted, and without effect");
    ASSERT_NE(rest, std::string::npos);
    EXPECT_EQ(options_in(section.substr(0, rest)), options_in(usage()));
    const auto accepted = options_in(section.substr(rest));
    EXPECT_TRUE(accepted.contains("tcp-established"));
    for (const std::string& name : accepted) {
        auto options = parse({"check", "--" + name, "x"});  // a value for those that need one, else refused
        EXPECT_TRUE(options || options.error().line().find("--" + name) == std::string::npos) << name;
    }
}

}  // namespace
}  // namespace checkpointd::criu

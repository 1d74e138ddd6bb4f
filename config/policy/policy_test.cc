// SPDX-License-Identifier: LGPL-2.1-or-later
#include "config/policy/policy.h"

#include <filesystem>
#include <fstream>
#include <random>
#include <unistd.h>

#include <gtest/gtest.h>

namespace checkpointd {
namespace {

using std::chrono::microseconds;
using std::chrono::milliseconds;
using std::chrono::minutes;
using std::chrono::seconds;

TEST(Duration, ReadsWhatSystemdReads) {
    EXPECT_EQ(parse_duration("5min 20s").value(), seconds(320));
    EXPECT_EQ(parse_duration("1h30min").value(), minutes(90));
    EXPECT_EQ(parse_duration("90").value(), seconds(90));
    EXPECT_EQ(parse_duration(" 1.5s ").value(), milliseconds(1500));
    EXPECT_EQ(parse_duration("2 days 1w").value(), std::chrono::hours(24 * 9));
    EXPECT_EQ(parse_duration("250ms 3us").value(), microseconds(250003));
    EXPECT_EQ(parse_duration("infinity").value(), kForever);
}

TEST(Duration, RefusesTheRest) {
    for (const char* text : {"", " ", "s", "-5s", "5 parsecs", "1..5s", "5min 20q", "99999999999999w",
                             "9223372036854775807us", "infinity 5s", "5s,"})
        EXPECT_FALSE(parse_duration(text)) << text;
}

TEST(Duration, FormatReadsBack) {
    for (uint64_t value : {0ull, 1ull, 999ull, 1000000ull, 320000000ull, 5400000001ull,
                           604800000000ull, 9223372036854775806ull}) {
        microseconds span(static_cast<int64_t>(value));
        EXPECT_EQ(parse_duration(format_duration(span)).value(), span) << format_duration(span);
    }
    EXPECT_EQ(format_duration(seconds(320)), "5min 20s");
    EXPECT_EQ(format_duration(kForever), "infinity");
}

TEST(Policy, SectionsLieOverEachOther) {
    Policy policy;
    ASSERT_TRUE(merge_policy(policy, R"(
version: 1
idle-timeout: 5min
defaults:
  keep: 2
  timeouts: {memory: 1min, total: infinity}
units:
  "llm-*.service":
    keep: 3
    timeouts: {memory: 20min}
    plugins: {cuda: {enabled: yes, on-timeout: leave}, amdgpu: no}
    tell: {before: SIGUSR1, socket: /run/llm/tell, when-silent: go-on}
  "llm-small.service":
    keep: 4
    tell: {socket: none, after: SIGRTMIN+3}
    plugins: {cuda: {on-timeout: resume, lock-timeout: 5s}}
    sync: no
    reserve-pids: no
    pid-taken: namespace
)",
                             "a.yaml"));
    EXPECT_EQ(policy.idle_timeout, minutes(5));
    auto other = policy.for_unit("redis.service");
    EXPECT_EQ(other.keep, 2u);
    EXPECT_TRUE(other.sync);
    EXPECT_EQ(other.timeout(Phase::kMemory), minutes(1));
    EXPECT_EQ(other.timeout(Phase::kTotal), kForever);
    EXPECT_EQ(other.timeout(Phase::kFreeze), seconds(10));  // built in
    EXPECT_EQ(policy.for_unit("llm-big.service").keep, 3u);
    auto small = policy.for_unit("llm-small.service");
    EXPECT_EQ(small.keep, 4u);
    EXPECT_FALSE(small.sync);
    EXPECT_TRUE(small.pid_namespace);
    EXPECT_FALSE(other.pid_namespace);
    EXPECT_EQ(small.timeout(Phase::kMemory), minutes(20));
    EXPECT_TRUE(small.plugins.at("cuda").is_enabled());
    EXPECT_FALSE(small.plugins.at("amdgpu").is_enabled());
    EXPECT_EQ(small.plugins.at("cuda").settings,
              (std::map<std::string, std::string>{{"on-timeout", "resume"}, {"lock-timeout", "5s"}}));
    EXPECT_EQ(small.tell.values(), (std::map<std::string, std::string>{{"before", "SIGUSR1"},
                                                                       {"after", "SIGRTMIN+3"},
                                                                       {"socket", "none"},
                                                                       {"when-silent", "go-on"}}));
    EXPECT_FALSE(other.tell.asks());
}

// What merge_policy() says about `text`, one line per error.
std::string complaint(const std::string& text) {
    Policy policy;
    policy.defaults.keep = 77;
    auto result = merge_policy(policy, text, "p.yaml");
    EXPECT_EQ(policy.defaults.keep, 77u) << "a bad file must change nothing";
    return result ? "accepted" : result.error().text();
}

TEST(Policy, ErrorsHavePositionAndAllowedKeys) {
    auto text = complaint("defaults:\n  kep: 3\n  sync: maybe\n  timeouts:\n    memory: 5 parsecs\n");
    EXPECT_NE(text.find("p.yaml:2:3: unknown key \"kep\" in defaults"), std::string::npos) << text;
    EXPECT_NE(text.find("allowed: checkpoint-at-shutdown, keep, pid-taken, plugins, reserve-pids, restore-at-boot, reuse, "
                        "sync, tell, timeouts"),
              std::string::npos)
        << text;
    EXPECT_NE(text.find("p.yaml:3:9: \"sync\" must be yes or no"), std::string::npos) << text;
    EXPECT_NE(text.find("p.yaml:5:13:"), std::string::npos) << text;
    EXPECT_NE(text.find("unknown unit of time \"parsecs\""), std::string::npos) << text;
}

TEST(Policy, WrongShapesAreErrors) {
    EXPECT_NE(complaint("defaults: {plugins: {cuda: {enabled: perhaps}}}\n").find("\"enabled\" must be yes or no"),
              std::string::npos);
    EXPECT_NE(complaint("defaults: {plugins: {cuda: {backend: [a]}}}\n").find("plain word"), std::string::npos);
    EXPECT_NE(complaint("- a\n").find("p.yaml:1:1: the policy must be a mapping"), std::string::npos);
    EXPECT_NE(complaint("units: [a]\n").find("units must be a mapping"), std::string::npos);
    EXPECT_NE(complaint("defaults: {keep: -1}\n").find("number from 0 to 1000"), std::string::npos);
    EXPECT_NE(complaint("defaults: {keep: 1, keep: 2}\n").find("stands twice"), std::string::npos);
    EXPECT_NE(complaint("version: 2\n").find("version"), std::string::npos);
    EXPECT_NE(complaint("defaults: {timeouts: {total: 0}}\n").find("zero"), std::string::npos);
    EXPECT_NE(complaint("a: [\n").find("not valid YAML"), std::string::npos);
    EXPECT_NE(complaint("? [a]\n: b\n").find("plain word"), std::string::npos);
}

TEST(Policy, HowToTellIsChecked) {
    for (const char* bad :
         {"before: SIGKILL", "before: SIGSTOP", "after: USR1", "after: SIGRTMIN+99", "before: []",
          "socket: run/x", "socket: /", "when-silent: yes", "afterwards: SIGUSR1"}) {
        auto text = complaint(fmt::format("defaults: {{tell: {{{}}}}}\n", bad));
        EXPECT_NE(text.find("p.yaml:1:"), std::string::npos) << bad << ": " << text;
    }
    for (const char* good : {"before: SIGHUP", "after: SIGRTMIN+0", "before: none",
                             "socket: /run/x", "when-silent: fail"})
        EXPECT_EQ(complaint(fmt::format("defaults: {{tell: {{{}}}}}\n", good)), "accepted") << good;
}

TEST(Policy, PrintedPolicyReadsBack) {
    Policy policy;
    ASSERT_TRUE(merge_policy(policy,
                             "defaults: {keep: 9, plugins: {\"a: b\": no, c: {d: \"1: 2\"}}, "
                             "timeouts: {stop: 1min 1s, total: infinity}, "
                             "tell: {socket: \"/run/a: b\", after: SIGUSR2}}",
                             "p"));
    auto effective = policy.for_unit("x.service");
    Policy again;
    ASSERT_TRUE(merge_policy(again, print_policy(effective), "printed"));
    EXPECT_EQ(again.for_unit("x.service"), effective);
}

class PolicyFiles : public ::testing::Test {
  protected:
    void SetUp() override {
        char name[] = "/tmp/ckpt-policy-XXXXXX";
        ASSERT_NE(mkdtemp(name), nullptr);
        dir_ = name;
    }
    void TearDown() override { std::filesystem::remove_all(dir_); }
    void put(const std::string& path, const std::string& text) {
        std::filesystem::path full = dir_ / path;
        std::filesystem::create_directories(full.parent_path());
        std::ofstream(full) << text;
    }
    std::filesystem::path dir_;
};

TEST_F(PolicyFiles, AdminOverVendorAndFragmentsByName) {
    put("usr/policy.yaml", "defaults: {keep: 1, sync: no}");
    put("etc/policy.yaml", "defaults: {keep: 2}");
    put("usr/policy.d/20-x.yaml", "defaults: {keep: 20}");
    put("etc/policy.d/10-x.yaml", "defaults: {keep: 10}");
    put("usr/policy.d/30-x.yaml", "defaults: {keep: 30}");
    put("etc/policy.d/30-x.yaml", "");
    put("etc/policy.d/99-note.txt", "not: {read");
    auto policy = load_policy(dir_ / "usr", dir_ / "etc");
    ASSERT_TRUE(policy) << policy.error().text();
    EXPECT_EQ(policy->for_unit("x").keep, 20u);
    EXPECT_FALSE(policy->for_unit("x").sync);
    EXPECT_EQ(policy->files.size(), 5u);
}

TEST_F(PolicyFiles, MissingFilesAreFine) {
    auto policy = load_policy(dir_ / "usr", dir_ / "etc");
    ASSERT_TRUE(policy);
    EXPECT_EQ(policy->for_unit("x").keep, 1u);
}

// The shipped file says in words what is built in; both must stay the same.
TEST(Policy, ShippedDefaultsAreTheBuiltInOnes) {
    auto shipped = load_policy(SHIPPED_POLICY_DIR, "/nonexistent");
    ASSERT_TRUE(shipped) << shipped.error().text();
    ASSERT_EQ(shipped->files.size(), 1u);
    EXPECT_EQ(shipped->for_unit("x.service"), Policy{}.for_unit("x.service"));
    EXPECT_EQ(shipped->idle_timeout, Policy{}.idle_timeout);
}

// Random damage to a good file must end in a policy or in an error with a position, never in a crash.
TEST(Policy, SurvivesDamage) {
    const std::string good = "version: 1\nidle-timeout: 5min\ndefaults: &d\n  keep: 2\n  timeouts: {memory: "
                             "1min}\nunits:\n  \"a*\":\n    sync: no\n    plugins: {cuda: yes}\n";
    std::mt19937 random(7);
    const std::string alphabet = ":{}[]&*!|>\"'%@`#,-?\n\t \\0az~";
    unsigned refused = 0;
    for (int round = 0; round < 3000; ++round) {
        std::string text = good;
        for (unsigned n = 1 + random() % 4; n > 0; --n) {
            size_t at = random() % text.size();
            if (random() % 3 == 0) text.erase(at, 1 + random() % 8);
            else if (random() % 2 == 0) text.insert(at, 1, alphabet[random() % alphabet.size()]);
            else text[at] = static_cast<char>(random() % 256);
            if (text.empty()) text = "a";
        }
        Policy policy;
        auto result = merge_policy(policy, text, "f");
        if (result) continue;
        ++refused;
        EXPECT_EQ(result.error().kind, ErrorKind::kBadInput);
        EXPECT_NE(result.error().text().find("f:"), std::string::npos) << result.error().text();
    }
    EXPECT_GT(refused, 500u);
}

}  // namespace
}  // namespace checkpointd

// SPDX-License-Identifier: LGPL-2.1-or-later
#include <fcntl.h>
#include <filesystem>
#include <fstream>
#include <gtest/gtest.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "units/check_state.h"
#include "units/drop_in.h"
#include "units/gate.h"
#include "units/pid_floor.h"
#include "units/proc_mount.h"
#include "units/resolve.h"
#include "units/security_label.h"
#include "units/stage.h"
#include "units/stop.h"

namespace checkpointd {
namespace {

namespace fs = std::filesystem;

TEST(DropIn, WordsAreQuotedExactly) {
    EXPECT_EQ(quote_word("plain"), "\"plain\"");
    EXPECT_EQ(quote_word(""), "\"\"");
    EXPECT_EQ(quote_word("a b\"c\\d"), "\"a b\\\"c\\\\d\"");
    EXPECT_EQ(quote_word("100%"), "\"100%%\"");
    EXPECT_EQ(quote_word("$HOME"), "\"$HOME\"");
    EXPECT_EQ(quote_literal_word("$HOME"), "\"$$HOME\"");
    EXPECT_EQ(quote_word("line\nend\x01"), "\"line\\x0aend\\x01\"");
    EXPECT_EQ(quote_word("\xc3\xa4;"), "\"\\xc3\\xa4;\"");
}

TEST(DropIn, ValuesRefuseLineEnds) {
    EXPECT_EQ(escape_value("50% of it").value(), "50%% of it");
    for (const char* bad : {"a\nExecStart=/bin/sh", "tab\t", "\x7f", "glue\\"})
        EXPECT_FALSE(escape_value(bad)) << bad;
}

TEST(DropIn, UnitNames) {
    for (const char* good : {"a.service", "getty@tty1.service", "dev-disk\\x2dby.service", "x:y.socket"})
        EXPECT_TRUE(is_valid_unit_name(good)) << good;
    for (const char* bad : {"", ".service", "a", "../a.service", "a b.service", "a.service/", "a.conf",
                            "@.service", "a\n.service"})
        EXPECT_FALSE(is_valid_unit_name(bad)) << bad;
    EXPECT_FALSE(is_valid_unit_name(std::string(250, 'a') + ".service"));
}

TEST(Gate, DropInSurvivesEverything) {
    EXPECT_EQ(gate_drop_in("a@x.service", "/gate"),
              "# Written by checkpointd's generator: this unit has an image, see checkpointd(8).\n"
              "\n[Service]\nExecCondition=-+/gate \"a@x.service\"\n");
    EXPECT_LT(kGateDropInName, kDropInName) << "the restore drop-in must be read after the gate's";
}

UnitFacts sample_facts(const std::string& type) {
    UnitFacts facts;
    facts.id = "foo.service";
    facts.type = type;
    facts.cgroup = "/system.slice/foo.service";
    facts.main_pid = 4711;
    facts.watchdog_usec = 30;
    facts.pid_file = "/run/foo.pid";
    facts.pid_file_content = "4711\n";
    facts.exec_start = {{"/usr/bin/foo", {"foo", "-x", "a b"}, {"ignore-failure"}}};
    facts.directories = {{"/run/foo"}, {"/tmp"}};
    facts.externals = {{"socket:[77]", ExternalKind::kStdio, 1, "", ""},
                       {"socket:[78]", ExternalKind::kListen, 0, "web", "1 6 0200"},
                       {"socket:[79]", ExternalKind::kJournal, 1, "", ""}};
    return facts;
}

TEST(DropIn, RestoreDropInByType) {
    std::vector<ExecCommand> commands = {{"/opt/$dir/foo", {"foo", "$OPTS", "50%"}, {}}};
    StageOptions options;
    std::string simple = restore_drop_in(sample_facts("simple"), commands, options);
    EXPECT_NE(simple.find("\nType=notify\n"), std::string::npos);
    EXPECT_NE(simple.find("\nExecStart=\nExecStart=/usr/libexec/checkpointd/stage leave 600 "
                          "\"/opt/$$dir/foo\" \"foo\" \"$OPTS\" \"50%%\"\n"),
              std::string::npos)
        << simple;
    EXPECT_NE(simple.find("\nSyslogIdentifier=foo\n"), std::string::npos);
    EXPECT_EQ(simple.find("ExecPaths"), std::string::npos)
        << "would give an unsandboxed unit a mount namespace";
    for (const char* type : {"forking", "oneshot"})
        EXPECT_EQ(restore_drop_in(sample_facts(type), commands, options).find("Type="),
                  std::string::npos);
}

TEST(DropIn, RestoreKeepsCommandPrefixes) {
    StageOptions options{"/h", std::chrono::seconds(5), true, true};
    std::vector<ExecCommand> commands = {
        {"/a$b", {"x$y"}, {"no-env-expand", "privileged", "ignore-failure"}}};
    std::string text = restore_drop_in(sample_facts("exec"), commands, options);
    EXPECT_NE(text.find("\nExecStart=:-+/h exec 5 \"/a$b\" \"x$y\"\n"), std::string::npos) << text;
    EXPECT_NE(text.find("\nExecPaths=/h\n"), std::string::npos);
}

TEST(DropIn, RestoreOfAOneshotTakesTheLineThatRan) {
    UnitFacts facts = sample_facts("oneshot");
    facts.exec_index = 1;
    std::vector<ExecCommand> commands = {{"/first", {"first"}, {}}, {"/second", {"second"}, {}}};
    std::string text = restore_drop_in(facts, commands, StageOptions{"/h"});
    EXPECT_EQ(text.find("/first"), std::string::npos);
    EXPECT_NE(text.find("\"/second\" \"second\"\n"), std::string::npos) << text;
}

TEST(DropIn, TransientUnitsBringTheirDefinition) {
    UnitFacts facts = sample_facts("simple");
    facts.definition = "# systemd's\n[Service]\nExecStart=\nExecStart=/bin/own\nNice=3\n";
    std::string text = restore_drop_in(facts, facts.exec_start, StageOptions{"/h"});
    EXPECT_LT(text.find("Nice=3"), text.find("ExecStart=/h ")) << "ours is the last word: " << text;
    facts.type = "scope";
    facts.definition = "[Scope]\nSlice=x.slice\n";
    text = restore_drop_in(facts, {}, StageOptions{"/h"});
    EXPECT_NE(text.find("Slice=x.slice"), std::string::npos) << text;
    EXPECT_EQ(text.find("[Service]"), std::string::npos) << text;
}

TEST(ProcMount, SeenIsTheUppermostAndWhatLiesOnIt) {
    auto seen = parse_proc_mount(
        "21 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda rw\n"
        "22 21 0:20 / /proc rw,nosuid,nodev,noexec,relatime shared:2 - proc proc rw\n"
        "23 22 0:21 / /proc/sys/fs/binfmt_misc rw - autofs systemd-1 rw\n"
        "40 22 0:40 / /proc ro,nosuid,noatime - proc proc rw,hidepid=invisible,subset=pid\n"
        "41 40 0:40 /sys /proc/sys ro,relatime master:2 - proc proc rw\n"
        "42 41 0:22 / /proc/sys/kernel/random/boot_id ro - tmpfs tmpfs rw\n");
    ASSERT_TRUE(seen);
    EXPECT_EQ(seen->attributes, uint64_t{MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOATIME});
    EXPECT_EQ(seen->options, (std::vector<std::pair<std::string, std::string>>{{"hidepid", "invisible"},
                                                                             {"subset", "pid"}}));
    EXPECT_EQ(seen->below, std::vector<std::string>{"/proc/sys"});
}

TEST(ProcMount, SomethingElseMayLieThere) {
    EXPECT_FALSE(parse_proc_mount(""));
    EXPECT_FALSE(parse_proc_mount("21 1 8:1 / / rw - ext4 /dev/sda rw\ndamaged\n22 21 0 / /proc\n"));
    EXPECT_FALSE(parse_proc_mount("22 21 0:20 / /proc rw - proc proc rw\n"
                                  "23 22 0:9 / /proc rw - tmpfs tmpfs rw\n"));
    EXPECT_FALSE(parse_proc_mount("22 21 0:20 /sys /proc rw - proc proc rw\n"));
}

TEST(CheckState, SomeUnitsAreRefusedByName) {
    for (const char* good : {"a.service", "a.scope", "session.service", "user.service"})
        EXPECT_TRUE(check_name(good)) << good;
    for (const char* bad : {"init.scope", "session-12.scope", "user@1000.service", "a.slice", "a.socket"})
        EXPECT_FALSE(check_name(bad)) << bad;
}

// Control groups look like ordinary directories and files, but for what the kernel does with them.
TEST(Subgroups, ReadAndMadeAgain) {
    char name[] = "/tmp/units-test-XXXXXX";
    ASSERT_NE(mkdtemp(name), nullptr);
    std::string top = name, old = top + "/old", again = top + "/new";
    auto control = [](const std::string& file, const std::string& text) {
        fs::create_directories(fs::path(file).parent_path());
        std::ofstream(file) << text;
    };
    control(old + "/cgroup.subtree_control", "memory pids\n");
    control(old + "/memory.max", "4096\n");  // systemd's own matter
    control(old + "/work/memory.max", "1048576\n");
    control(old + "/work/pids.max", "max\n");
    control(old + "/work/io.max", "8:0 rbps=1\n8:16 rbps=2\n");
    control(old + "/work/one/cgroup.max.depth", "3\n");
    control(old + "/.control/memory.max", "1\n");
    auto groups = read_subgroups(old);
    ASSERT_TRUE(groups) << groups.error().text();
    std::vector<std::string> paths;
    for (const Subgroup& group : *groups)
        paths.push_back(group.path);
    EXPECT_EQ(paths, (std::vector<std::string>{"", "/work", "/work/one"}));
    EXPECT_TRUE(hands_controllers_down(*groups));
    EXPECT_FALSE(hands_controllers_down({groups->begin() + 1, groups->end()}));
    fs::create_directory(again);
    ASSERT_TRUE(make_subgroups(again, *groups));
    for (const char* file : {"/cgroup.subtree_control", "/work/memory.max", "/work/io.max",
                             "/work/one/cgroup.max.depth"})
        control(again + file, "");
    auto done = configure_subgroups(again, *groups);
    ASSERT_TRUE(done) << done.error().text();
    std::ifstream handed_down(again + "/cgroup.subtree_control");
    EXPECT_EQ(std::string(std::istreambuf_iterator<char>(handed_down), {}), "+memory +pids");

    control(old + "/work/cgroup.freeze", "1\n");
    EXPECT_FALSE(read_subgroups(old)) << "a frozen group is refused";
    for (const char* bad : {"/../x", "x", "/a/.."})
        EXPECT_FALSE(make_subgroups(again, {Subgroup{bad, 0, 0, 0755, {}, {}}})) << bad;
    fs::remove_all(top);
}

TEST(DropIn, StopDropInOfOneshotClearsItsCommands) {
    EXPECT_EQ(stop_drop_in(sample_facts("simple")).find("ExecStart="), std::string::npos);
    EXPECT_NE(stop_drop_in(sample_facts("oneshot")).find("\nExecStart=\nExecStart=/bin/true\n"),
              std::string::npos);
}

TEST(SecurityLabel, ThoseThatWouldChangeAreRefused) {
    EXPECT_EQ(label_in("unconfined\n"), "unconfined");
    EXPECT_EQ(label_in(std::string_view("system_u:system_r:init_t:s0\0", 28)),
              "system_u:system_r:init_t:s0");
    EXPECT_EQ(label_in("/usr/bin/x (enforce)"), "/usr/bin/x (enforce)");
    EXPECT_EQ(label_in(""), "");
    auto own = security_label(getpid());
    ASSERT_TRUE(own) << own.error().text();
    Blockers none("a.service"), some("a.service");
    check_labels({getpid()}, *own, none);
    EXPECT_TRUE(std::move(none).result());
    check_labels({getpid()}, "another", some);
    auto refused = std::move(some).result();
    ASSERT_FALSE(refused);
    EXPECT_NE(refused.error().text().find("would come back with \"another\""), std::string::npos);
}

TEST(Resolve, ListenNames) {
    using Names = std::vector<std::string>;
    EXPECT_EQ(listen_names(std::string_view("A=1\0LISTEN_FDS=2\0LISTEN_FDNAMES=web:admin\0", 43)),
              (Names{"web", "admin"}));
    EXPECT_EQ(listen_names(std::string_view("LISTEN_FDS=2\0", 13)), (Names{"", ""}));
    EXPECT_EQ(listen_names("A=1"), Names{});
}

TEST(Resolve, WhatMustNeverStandStill) {
    for (const char* unit : {"dbus.service", "dbus-broker.service", "systemd-journald.service",
                             "systemd-journald@x.service", "checkpointd.service", "checkpointd-job-7.service"})
        EXPECT_FALSE(why_never_stopped(unit).empty()) << unit;
    for (const char* unit : {"foo.service", "dbus-x.service", "systemd-logind.service", "x-dbus.service",
                             "checkpointd-jobs.service", "checkpoint@foo.service"})
        EXPECT_TRUE(why_never_stopped(unit).empty()) << unit;
}

TEST(Resolve, FactsSurviveJson) {
    UnitFacts facts = sample_facts("forking");
    facts.definition = "[Service]\nExecStart=/x\n";
    facts.only_in_place = "it is in line 1 of 2";
    facts.subgroups = {{"", 0, 0, 0755, {}, {{"cgroup.subtree_control", "+pids"}}},
                       {"/a", 7, 8, 0700, {"cgroup.procs"}, {{"pids.max", "9"}}}};
    auto back = unit_facts_from_json(to_json(facts));
    ASSERT_TRUE(back) << back.error().text();
    EXPECT_EQ(to_json(*back), to_json(facts));
    EXPECT_EQ(back->externals, facts.externals);
    EXPECT_EQ(back->directories, facts.directories);
    EXPECT_EQ(back->main_pid, 4711);
    EXPECT_EQ(back->subgroups, facts.subgroups);
    EXPECT_EQ(back->only_in_place, facts.only_in_place);
    EXPECT_EQ(back->definition, facts.definition);
    for (const char* bad : {"", "{}", "[1]", "{\"id\": 7}", "nonsense"})
        EXPECT_FALSE(unit_facts_from_json(bad)) << bad;
}

TEST(Resolve, SocketsAreRecognisedByAddress) {
    auto listener = [](const char* name) {
        int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        sockaddr_un address = {};
        address.sun_family = AF_UNIX;
        snprintf(address.sun_path + 1, sizeof(address.sun_path) - 1, "units-test-%d-%s", getpid(), name);
        EXPECT_EQ(bind(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
        EXPECT_EQ(listen(fd, 1), 0);
        return ScopedFd(fd);
    };
    ScopedFd one = listener("one"), two = listener("two"), again(dup(one.get()));
    EXPECT_EQ(describe_socket(one.get()).value(), describe_socket(again.get()).value());
    EXPECT_NE(describe_socket(one.get()).value(), describe_socket(two.get()).value());
    EXPECT_FALSE(describe_socket(STDIN_FILENO + 1000));
}

TEST(PidFloor, HighestOfAllReadableIndexes) {
    char name[] = "/tmp/units-test-XXXXXX";
    ASSERT_NE(mkdtemp(name), nullptr);
    std::string store = name;
    auto image = [&](const std::string& where, const std::string& text) {
        fs::create_directories(store + "/" + where);
        std::ofstream(store + "/" + where + "/checkpointd-image.json") << text;
    };
    EXPECT_EQ(highest_image_pid(store).value(), 0);
    image("a.service/1", "{\"max_pid\": 4000}");
    image("a.service/2", "{\"max_pid\": 5001}");
    image("b.service/1", "{\"max_pid\": \"9999\"}");
    image("b.service/2", "{\"max_pid\": -3}");
    image("b.service/3", "{\"max_pid\": 99999999999}");
    image("b.service/4", "torn{");
    EXPECT_EQ(highest_image_pid(store).value(), 5001);
    fs::remove_all(store);
    EXPECT_EQ(highest_image_pid(store).value(), 0) << "no store yet";
}

}  // namespace
}  // namespace checkpointd

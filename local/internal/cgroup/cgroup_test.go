package cgroup

import (
	"bufio"
	"slices"
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	const hybrid = `24 1 254:0 / / rw,relatime - ext4 /dev/vda rw
30 24 0:26 / /sys/fs/cgroup ro,nosuid shared:9 - tmpfs tmpfs ro,mode=755
31 30 0:27 / /sys/fs/cgroup/unified rw,nosuid shared:10 - cgroup2 cgroup2 rw,nsdelegate
32 30 0:28 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid - cgroup cgroup rw,cpu,cpuacct
33 30 0:28 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid - cgroup cgroup rw,cpu,cpuacct
34 30 0:29 / /mnt/elsewhere rw - cgroup cgroup rw,memory
`
	const unified = "30 24 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw\n"
	for _, tt := range []struct {
		name, mounts string
		want         []hierarchy
	}{
		{"hybrid; a mount over another counts once", hybrid, []hierarchy{{"/sys/fs/cgroup/unified", true}, {"/sys/fs/cgroup/cpu,cpuacct", false}}},
		{"version 2 alone", unified, []hierarchy{{"/sys/fs/cgroup", true}}},
		{"none", "", nil},
	} {
		got, err := parse(bufio.NewScanner(strings.NewReader(tt.mounts)))
		if err != nil || !slices.Equal(got, tt.want) {
			t.Errorf("%s: %v, %v; want %v", tt.name, got, err, tt.want)
		}
	}
}

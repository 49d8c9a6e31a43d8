package instance

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/heddle-mesh/heddle/local/internal/plan"
)

func TestNamed(t *testing.T) {
	for name, valid := range map[string]bool{
		"demo": true, "a": true, "t-1": true, "": false, "-a": false, "a-": false, "A": false, "a/b": false, "..": false,
		"abcdefghijklmnopqrstuv": true, "abcdefghijklmnopqrstuvw": false,
	} {
		if _, err := Named(name); (err == nil) != valid {
			t.Errorf("%q: %v, want valid: %v", name, err, valid)
		}
	}
}

func TestNameServers(t *testing.T) {
	var got []string
	for _, u := range nameServers("# nameserver 1.1.1.1\nsearch x\nnameserver 10.255.255.53\nnameserver fd00::1 \nnameserver\nnameserver x\n") {
		got = append(got, u.Range.String())
	}
	if want := []string{"10.255.255.53/32", "fd00::1/128"}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

func TestClusterIsNamedEverywhere(t *testing.T) {
	i, s := Instance{"demo"}, State{Base: plan.Base{A: 10, B: 200}, Port: 5003}
	c := i.Cluster(s, 2)
	if c.Dir != "/var/lib/heddle-local/demo/c2" || c.URL() != "https://10.202.0.1:6443" || c.Registry != "10.200.0.1:5003" {
		t.Errorf("%s %s %s", c.Dir, c.URL(), c.Registry)
	}
}

func TestLock(t *testing.T) {
	unlock, err := Lock(t.Context(), "unit-test")
	if err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if _, err := Lock(ctx, "unit-test"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a second lock: %v", err)
		}
	})
	unlock()
	unlock, err = Lock(t.Context(), "unit-test")
	if err != nil {
		t.Fatal(err)
	}
	unlock()
}

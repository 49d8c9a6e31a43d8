package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestMain(m *testing.M) {
	log.SetOutput(io.Discard)
	os.Exit(m.Run())
}

// network answers in place of the hosts that it names, and records what they were asked.
type network struct {
	hosts map[string]http.Handler // by host:port

	mu    sync.Mutex // guards asked
	asked []*http.Request
}

func (n *network) RoundTrip(r *http.Request) (*http.Response, error) {
	n.mu.Lock()
	n.asked = append(n.asked, r)
	n.mu.Unlock()
	h, ok := n.hosts[r.URL.Host]
	if !ok {
		return nil, errors.New("no such host " + r.URL.Host)
	}
	done := make(chan *http.Response, 1)
	go func() {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		done <- w.Result()
	}()
	select {
	case resp := <-done:
		return resp, nil
	case <-r.Context().Done():
		return nil, context.Cause(r.Context())
	}
}

// vars is an environment of these variables, as "NAME=value".
func vars(list ...string) environment {
	return func(name string) string {
		for _, v := range list {
			if value, ok := strings.CutPrefix(v, name+"="); ok {
				return value
			}
		}
		return ""
	}
}

// What tells the images of reviews apart.
var (
	v1 = []string{"HOSTNAME=reviews-v1-abc"}
	v2 = []string{"HOSTNAME=reviews-v2-abc", "ENABLE_RATINGS=true"}
	v3 = []string{"HOSTNAME=reviews-v3-abc", "ENABLE_RATINGS=true", "STAR_COLOR=red"}
)

// bookinfo returns the page with the other services behind it.
func bookinfo(reviewsVersion, ratingsVersion []string) (*productpage, *network) {
	n := &network{}
	client := &http.Client{Transport: n}
	p, d, v, r := newProductpage(vars()), newDetails(vars()), newReviews(vars(reviewsVersion...)), newRatings(vars(ratingsVersion...))
	r.coin = func() bool { return true }
	p.client, d.client, v.client = client, client, client
	n.hosts = map[string]http.Handler{"details:9080": d.handler(), "reviews:9080": v.handler(), "ratings:9080": r.handler()}
	return p, n
}

// ask returns the answer of a handler to a request with these headers, as "Name: value".
func ask(h http.Handler, method, path, body string, headers ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, path, strings.NewReader(body))
	for _, line := range headers {
		name, value, _ := strings.Cut(line, ": ")
		r.Header.Set(name, value)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

func TestPageShowsWhatEachVersionSays(t *testing.T) {
	for _, c := range []struct {
		name            string
		version         []string
		black, red      int // stars
		reviewer, error string
	}{
		{"v1 has no stars", v1, 0, 0, "reviews-v1-abc", ""},
		{"v2 has black ones", v2, 9, 0, "reviews-v2-abc", ""},
		{"v3 has red ones", v3, 0, 9, "reviews-v3-abc", ""},
	} {
		p, _ := bookinfo(c.version, nil)
		w := ask(p.handler(), "GET", "/productpage", "")
		page := w.Body.String()
		if title := regexp.MustCompile("<title>.*</title>").FindAllString(page, -1); w.Code != 200 || !slices.Equal(title, []string{"<title>Simple Bookstore App</title>"}) {
			t.Errorf("%s: status %d, titles %q", c.name, w.Code, title)
		}
		for color, want := range map[string]int{"black": c.black, "red": c.red} {
			got := 0
			for _, row := range regexp.MustCompile(`(?s)<div class="text-`+color+`-500">.*?</div>`).FindAllString(page, -1) {
				got += strings.Count(row, "glyphicon glyphicon-star")
			}
			if got != want {
				t.Errorf("%s: %d %s stars, want %d", c.name, got, color, want)
			}
		}
		for _, want := range []string{
			"The Comedy of Errors", "Wikipedia Summary</a>", "Book Details", "PublisherA", "1234567890", "Book Reviews",
			"slapstick humour is refreshing", "Reviews served by:", c.reviewer,
		} {
			if !strings.Contains(page, want) {
				t.Errorf("%s: no %q in\n%s", c.name, want, page)
			}
		}
		if strings.Contains(page, "on cluster") {
			t.Errorf("%s: a cluster without a name is shown", c.name)
		}
	}
}

func TestAnswersInJSON(t *testing.T) {
	const (
		plain = `"reviews":[{"reviewer":"Reviewer1","text":"An extremely entertaining play by Shakespeare. The slapstick humour is refreshing!"%s},` +
			`{"reviewer":"Reviewer2","text":"Absolutely fun and entertaining. The play lacks thematic depth when compared to other plays by Shakespeare."%s}]`
		theDetails = `{"id":0,"author":"William Shakespeare","year":1595,"type":"paperback","pages":200,"publisher":"PublisherA","language":"English","ISBN-10":"1234567890","ISBN-13":"123-1234567890"}`
		theRatings = `{"id":0,"ratings":{"Reviewer1":5,"Reviewer2":4}}`
	)
	said := func(a, b string) string {
		return `{"id":"0","podname":"reviews-v3-abc","clustername":"null",` + strings.Replace(strings.Replace(plain, "%s", a, 1), "%s", b, 1) + `}`
	}
	red := said(`,"rating":{"stars":5,"color":"red"}`, `,"rating":{"stars":4,"color":"red"}`)
	p, n := bookinfo(v3, nil)
	for _, c := range []struct {
		host, method, path, body string
		status                   int
		want                     string
	}{
		{"details", "GET", "/details/0", "", 200, theDetails},
		{"details", "GET", "/details/x", "", 400, `{"error":"please provide numeric product id"}`},
		{"details", "GET", "/health", "", 200, `{"status":"Details is healthy"}`},
		{"ratings", "GET", "/ratings/0", "", 200, theRatings},
		{"ratings", "GET", "/ratings/x", "", 400, `{"error":"please provide numeric product ID"}`},
		{"ratings", "GET", "/health", "", 200, `{"status":"Ratings is healthy"}`},
		{"reviews", "GET", "/reviews/0", "", 200, red},
		{"reviews", "GET", "/health", "", 200, `{"status":"Reviews is healthy"}`},
		{"", "GET", "/api/v1/products/0", "", 200, theDetails},
		{"", "GET", "/api/v1/products/0/ratings", "", 200, theRatings},
		{"", "GET", "/api/v1/products/0/reviews", "", 200, red},
		{"", "GET", "/api/v1/products/x", "", 400, `{"error":"Sorry, product details are currently unavailable for this book."}`},
		{"ratings", "POST", "/ratings/0", `{"Reviewer1":1,"Reviewer2":2}`, 200, `{"id":0,"ratings":{"Reviewer1":1,"Reviewer2":2}}`},
		{"ratings", "POST", "/ratings/0", `[]`, 400, `{"error":"please provide valid ratings JSON"}`},
		{"ratings", "GET", "/ratings/0", "", 200, `{"id":0,"ratings":{"Reviewer1":1,"Reviewer2":2}}`},
	} {
		h := p.handler()
		if c.host != "" {
			h = n.hosts[c.host+":9080"]
		}
		w := ask(h, c.method, c.path, c.body)
		if w.Code != c.status || w.Body.String() != c.want || w.Header().Get("Content-Type") != "application/json" {
			t.Errorf("%s %s: %d %s %s, want %d %s", c.host, c.path, w.Code, w.Header().Get("Content-Type"), w.Body, c.status, c.want)
		}
	}
	var products []map[string]any
	w := ask(p.handler(), "GET", "/api/v1/products", "")
	if err := json.Unmarshal(w.Body.Bytes(), &products); err != nil || len(products) != 1 || products[0]["title"] != "The Comedy of Errors" || products[0]["id"] != 0.0 {
		t.Errorf("products: %s (%v)", w.Body, err)
	}
	if w := ask(n.hosts["reviews:9080"], "GET", "/reviews/x", ""); w.Code != 404 {
		t.Errorf("reviews of a product without a number: %d", w.Code)
	}
}

// No stars are stars too.
func TestNoStars(t *testing.T) {
	p, n := bookinfo(v2, nil)
	if w := ask(n.hosts["ratings:9080"], "POST", "/ratings/0", `{"Reviewer1":0,"Reviewer2":0}`); w.Code != 200 {
		t.Fatal(w.Code)
	}
	if got := ask(n.hosts["reviews:9080"], "GET", "/reviews/0", "").Body.String(); strings.Count(got, `"rating":{"stars":0,"color":"black"}`) != 2 {
		t.Error(got)
	}
	if page := ask(p.handler(), "GET", "/productpage", "").Body.String(); strings.Contains(page, "glyphicon") || strings.Contains(page, "unavailable") {
		t.Error(page)
	}
}

func TestWhatIsDownIsSaid(t *testing.T) {
	p, n := bookinfo(v2, nil)
	delete(n.hosts, "ratings:9080")
	if page := ask(p.handler(), "GET", "/productpage", "").Body.String(); strings.Count(page, "Ratings service is currently unavailable") != 2 || strings.Contains(page, "glyphicon") {
		t.Errorf("without ratings:\n%s", page)
	}
	delete(n.hosts, "reviews:9080")
	n.hosts["details:9080"] = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(555) })
	n.asked = nil
	w := ask(p.handler(), "GET", "/productpage", "")
	for _, want := range []string{
		"Error fetching product details", "Sorry, product details are currently unavailable for this book.",
		"Error fetching product reviews", "Sorry, product reviews are currently unavailable for this book.",
	} {
		if w.Code != 200 || !strings.Contains(w.Body.String(), want) {
			t.Errorf("%d, no %q in\n%s", w.Code, want, w.Body)
		}
	}
	if len(n.asked) != 3 {
		t.Errorf("%d requests, want one for details and two for reviews", len(n.asked))
	}
	if w := ask(p.handler(), "GET", "/api/v1/products/0", ""); w.Code != 555 {
		t.Errorf("details answer 555, products %d", w.Code)
	}
	metrics := ask(p.handler(), "GET", "/metrics", "").Body.String()
	want := `request_result_total{destination_app="details",response_code="555"} 2
request_result_total{destination_app="reviews",response_code="200"} 1
request_result_total{destination_app="reviews",response_code="500"} 1
`
	if !strings.Contains(metrics, want) {
		t.Errorf("metrics\n%swant\n%s", metrics, want)
	}
}

// The document about faults: seven seconds are more than the page waits for reviews v2, which waits longer, and more than v3
// waits.
func TestDelayOfRatings(t *testing.T) {
	for _, c := range []struct {
		version []string
		want    string
		takes   time.Duration
	}{
		{v1, "Book Reviews", 0},
		{v2, "Error fetching product reviews", 6 * time.Second},
		{v3, "Ratings service is currently unavailable", 2500 * time.Millisecond},
	} {
		synctest.Test(t, func(t *testing.T) {
			p, _ := bookinfo(c.version, []string{"SERVICE_VERSION=v-delayed"})
			began := time.Now()
			page := ask(p.handler(), "GET", "/productpage", "").Body.String()
			if took := time.Since(began); took != c.takes || !strings.Contains(page, c.want) {
				t.Errorf("%s: %v, want %v and %q in\n%s", c.version[0], took, c.takes, c.want, page)
			}
		})
	}
}

func TestFaultyRatings(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, c := range []struct {
			version         string
			after           time.Duration
			coin            bool
			ratings, health int
			takes           time.Duration
		}{
			{"v1", time.Minute, true, 200, 200, 0},
			{"v-faulty", 0, true, 503, 200, 0},
			{"v-faulty", 0, false, 200, 200, 0},
			{"v-delayed", 0, true, 200, 200, 7 * time.Second},
			{"v-delayed", 0, false, 200, 200, 0},
			{"v-unavailable", 59 * time.Second, true, 200, 200, 0},
			{"v-unavailable", 60 * time.Second, true, 503, 200, 0},
			{"v-unavailable", 120 * time.Second, true, 200, 200, 0},
			{"v-unhealthy", 14 * time.Minute, true, 200, 200, 0},
			{"v-unhealthy", 15 * time.Minute, true, 503, 500, 0},
		} {
			r := newRatings(vars("SERVICE_VERSION=" + c.version))
			r.coin = func() bool { return c.coin }
			time.Sleep(c.after) // of the bubble's clock
			began := time.Now()
			got := ask(r.handler(), "GET", "/ratings/0", "").Code
			took := time.Since(began)
			if health := ask(r.handler(), "GET", "/health", "").Code; got != c.ratings || health != c.health || took != c.takes {
				t.Errorf("%+v: %d after %v, health %d", c, got, took, health)
			}
		}
	})
}

// Users choose the numbers: neither what is kept nor what is shown grows with them.
func TestRatingsAreBounded(t *testing.T) {
	p, n := bookinfo(v2, nil)
	post := func(id, body string) int { return ask(n.hosts["ratings:9080"], "POST", "/ratings/"+id, body).Code }
	if got := post("0", `{"Reviewer1":1000000,"Reviewer2":-3}`); got != 200 {
		t.Fatal(got)
	}
	if stars := strings.Count(ask(p.handler(), "GET", "/productpage", "").Body.String(), "glyphicon glyphicon-star"); stars != 5 {
		t.Errorf("%d stars", stars)
	}
	if got := post("0", `{"Reviewer1":`+strings.Repeat(" ", 8<<20/mostRated)+`1}`); got != 400 {
		t.Errorf("as much for each product as makes 8 MB for all: %d", got)
	}
	for id := 1; id < mostRated; id++ {
		if got := post(strconv.Itoa(id), `{}`); got != 200 {
			t.Fatal(got)
		}
	}
	if got := post(strconv.Itoa(mostRated), `{}`); got != 507 {
		t.Errorf("one product too many: %d", got)
	}
	if got := post("0", `{}`); got != 200 {
		t.Errorf("a product that is there: %d", got)
	}
}

func TestLoginDecidesWhoAsks(t *testing.T) {
	p, n := bookinfo(v1, nil)
	h := p.handler()
	w := ask(h, "POST", "/login", "username=jason&passwd=any", "Content-Type: application/x-www-form-urlencoded", "Referer: http://shop.example.com/productpage?u=normal")
	cookie := w.Result().Header.Get("Set-Cookie")
	if w.Code != 302 || w.Header().Get("Location") != "/productpage?u=normal" || !strings.HasPrefix(cookie, "session=") {
		t.Fatalf("%d, to %q, with %q", w.Code, w.Header().Get("Location"), cookie)
	}
	cookie, _, _ = strings.Cut(cookie, ";")
	for _, c := range []struct {
		name    string
		headers []string
		user    string
	}{
		{"logged in", []string{"Cookie: " + cookie}, "jason"},
		{"nobody", nil, ""},
		{"nobody, by a header", []string{"End-User: jason"}, ""},
		{"somebody, who sends another's header", []string{"Cookie: " + cookie, "End-User: mary"}, "jason"},
		{"a cookie that is none", []string{"Cookie: session=%%%"}, ""},
		{"a line break", []string{"Cookie: session=YQpi"}, ""},
	} {
		n.asked = nil
		page := ask(h, "GET", "/productpage", "", c.headers...).Body.String()
		for _, r := range n.asked {
			if got := strings.Join(r.Header.Values("End-User"), " "); got != c.user {
				t.Errorf("%s: %s is asked for %q, want %q", c.name, r.URL.Host, got, c.user)
			}
		}
		if in := strings.Contains(page, "Sign out"); len(n.asked) != 2 || in != (c.user != "") || c.user != "" && !strings.Contains(page, c.user) {
			t.Errorf("%s: %d requests,\n%s", c.name, len(n.asked), page)
		}
	}
	for _, name := range []string{"", " ", "a\nb", "jason\r\nx-admin: yes", strings.Repeat("a", mostName+1)} {
		if w := ask(h, "POST", "/login", url.Values{"username": {name}}.Encode(), "Content-Type: application/x-www-form-urlencoded"); w.Code != 400 || w.Header().Get("Set-Cookie") != "" {
			t.Errorf("%q logs in: %d", name, w.Code)
		}
	}
	w = ask(h, "GET", "/logout", "", "Cookie: "+cookie, "Referer: http://evil.example.com//evil.example.com/")
	if got := w.Result().Header.Get("Set-Cookie"); w.Code != 302 || w.Header().Get("Location") != "/productpage" || !strings.Contains(got, "Max-Age=0") {
		t.Errorf("log out: %d, to %q, with %q", w.Code, w.Header().Get("Location"), got)
	}
	if page := ask(h, "POST", "/login", "username=%3Cb%3E", "Content-Type: application/x-www-form-urlencoded"); page.Code != 302 {
		t.Errorf("a name in angle brackets: %d", page.Code)
	} else if c, _, _ := strings.Cut(page.Result().Header.Get("Set-Cookie"), ";"); strings.Contains(ask(h, "GET", "/productpage", "", "Cookie: "+c).Body.String(), "<b><a") {
		t.Error("a user's name is taken for HTML")
	}
}

// Each header reaches the last service, so that all requests of a trace can be told to belong together.
func TestHeadersGoOn(t *testing.T) {
	p, n := bookinfo(v2, nil)
	var headers []string
	for _, name := range propagated {
		if name != "End-User" && name != "Cookie" {
			headers = append(headers, name+": of "+name)
		}
	}
	cookie := "session=amFzb24"
	ask(p.handler(), "GET", "/productpage", "", append(headers, "Cookie: "+cookie, "X-Other: no")...)
	want := http.Header{"End-User": {"jason"}, "Cookie": {cookie}}
	for _, line := range headers {
		name, value, _ := strings.Cut(line, ": ")
		want[name] = []string{value}
	}
	hosts := make(map[string]bool)
	for _, r := range n.asked {
		hosts[r.URL.Host] = true
		if diff := cmp.Diff(want, r.Header); diff != "" {
			t.Errorf("to %s (-want +got):\n%s", r.URL.Host, diff)
		}
	}
	if len(hosts) != 3 || len(n.asked) != 3 {
		t.Errorf("%d requests to %v", len(n.asked), hosts)
	}
}

func TestWhereServicesAre(t *testing.T) {
	for _, c := range []struct {
		vars []string
		want string
	}{
		{nil, "http://ratings:9080/ratings/"},
		{[]string{"SERVICES_DOMAIN=shop.svc.cluster.local"}, "http://ratings.shop.svc.cluster.local:9080/ratings/"},
		{[]string{"RATINGS_HOSTNAME=ratings-v1", "RATINGS_SERVICE_PORT=80"}, "http://ratings-v1:80/ratings/"},
	} {
		if got := vars(c.vars...).service("ratings"); got != c.want {
			t.Errorf("%v: %s, want %s", c.vars, got, c.want)
		}
	}
}

func TestDetailsOfTheCatalogue(t *testing.T) {
	d := newDetails(vars("ENABLE_EXTERNAL_BOOK_SERVICE=true", "DO_NOT_ENCRYPT=true"))
	body := `{"items":[{"volumeInfo":{"authors":["William Shakespeare"],"publishedDate":"2002-01-01","printType":"BOOK","pageCount":64,"publisher":"Courier","language":"en",` +
		`"industryIdentifiers":[{"type":"ISBN_10","identifier":"0486424618"},{"type":"ISBN_13","identifier":"9780486424613"}]}}]}`
	n := &network{hosts: map[string]http.Handler{"www.googleapis.com": http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, body) })}}
	d.client = &http.Client{Transport: n}
	want := `{"id":0,"author":"William Shakespeare","year":"2002-01-01","type":"paperback","pages":64,"publisher":"Courier","language":"English","ISBN-10":"0486424618","ISBN-13":"9780486424613"}`
	if w := ask(d.handler(), "GET", "/details/0", ""); w.Code != 200 || w.Body.String() != want {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	if got := n.asked[0].URL.String(); got != "http://www.googleapis.com/books/v1/volumes?q=isbn:0486424618" {
		t.Errorf("asked %s", got)
	}
	if d := newDetails(vars("ENABLE_EXTERNAL_BOOK_SERVICE=true")); !strings.HasPrefix(d.catalogue, "https://") {
		t.Errorf("asks %s", d.catalogue)
	}
	for _, body = range []string{"{}", "[]", "no JSON"} {
		if w := ask(d.handler(), "GET", "/details/0", ""); w.Code != 400 || !bytes.Contains(w.Body.Bytes(), []byte(`"error"`)) {
			t.Errorf("the catalogue answers %s: %d %s", body, w.Code, w.Body)
		}
	}
}

func TestOtherPages(t *testing.T) {
	p, _ := bookinfo(v1, nil)
	for path, want := range map[string]string{
		"/": "http://reviews:9080/reviews/", "/index.html": `href="productpage?u=test"`, "/health": "Product page is healthy", "/static/style.css": ".text-red-500",
	} {
		if w := ask(p.handler(), "GET", path, ""); w.Code != 200 || !strings.Contains(w.Body.String(), want) {
			t.Errorf("%s: %d %s", path, w.Code, w.Body)
		}
	}
	if w := ask(p.handler(), "GET", "/nothing", ""); w.Code != 404 {
		t.Errorf("/nothing: %d", w.Code)
	}
}

func TestFlood(t *testing.T) {
	p, n := bookinfo(v1, nil)
	p.flood = newProductpage(vars("FLOOD_FACTOR=7")).flood
	ask(p.handler(), "GET", "/productpage", "")
	asked := 0
	for _, r := range n.asked {
		if r.URL.Host == "reviews:9080" {
			asked++
		}
	}
	if asked != 8 {
		t.Errorf("reviews is asked %d times, want 8", asked)
	}
}

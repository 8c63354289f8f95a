//! The first whole path: from `kubectl apply` to answers through a Service, and its end.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use sampan_tests::{Cluster, eventually, http_get, http_post, repository, run, sampan, sample, tcp_echo};

#[test]
fn the_demo_runs_and_leaves_nothing() {
    let script = repository().join("scripts/demo.sh");
    let samples = sample("hello");
    let finished = run(&script, &[sampan().to_str().unwrap(), samples.parent().unwrap().to_str().unwrap()]);
    assert!(finished.ok, "{}\n{}", finished.out, finished.err);
    let answers: Vec<&str> = finished.out.lines().filter(|line| line.starts_with("Hello from ")).collect();
    assert_eq!(answers.len(), 6, "{}", finished.out);
    assert!(answers.iter().collect::<BTreeSet<_>>().len() > 1, "one pod answered all: {answers:?}");
    let dir = finished.out.lines().find_map(|line| line.strip_prefix("$ sampan up --data-dir ")).unwrap();
    let dir = dir.split(' ').next().unwrap();
    assert!(!std::path::Path::new(dir).exists(), "{dir} is still there");
    let left = run(std::path::Path::new("pgrep"), &["-f", dir]);
    assert_eq!(left.out, "", "processes are left");
}

#[test]
fn hello_answers_through_its_service() {
    let mut cluster = Cluster::up();
    cluster.deploy("hello");
    cluster.rolled_out("hello");
    let authority = format!("{}:8080", cluster.service_address("hello"));
    let mut pods = BTreeSet::new();
    for _ in 0..60 {
        let (status, body) = http_get(&authority, "/some/path?x=1").unwrap();
        assert_eq!(status, 200);
        assert!(body.ends_with("you asked for /some/path?x=1\n"), "{body}");
        pods.insert(body.split(' ').nth(2).unwrap().to_owned());
    }
    let names: BTreeSet<String> =
        cluster.pods("app=hello").iter().map(|pod| pod["metadata"]["name"].as_str().unwrap().to_owned()).collect();
    assert_eq!(pods, names, "all pods take part");

    // Nobody sends to a pod that is going away.
    cluster.kubectl(&["scale", "deployment/hello", "--replicas=1"]);
    eventually("one pod", || (cluster.pods("app=hello").len() == 1).then_some(()));
    let left = cluster.pods("app=hello")[0]["metadata"]["name"].as_str().unwrap().to_owned();
    eventually("only the one that is left answers", || {
        let answers: Vec<_> = (0..10).map(|_| http_get(&authority, "/")).collect();
        answers.iter().all(|answer| answer.as_ref().is_ok_and(|(_, body)| body.contains(&left))).then_some(())
    });

    let finished = cluster.terminate();
    assert!(finished.ok, "{}", finished.err);
    assert!(finished.took.as_secs() < 15, "{:?}", finished.took);
    // Nothing is left to take away. (The address itself is nobody's now: asking it would go elsewhere.)
    let down = cluster.down();
    assert!(
        down.starts_with("removed 0 host processes, 0 network namespaces, 0 interfaces, 0 routes, 0 tables"),
        "{down}"
    );
}

#[test]
fn guests_find_each_other_by_name() {
    let cluster = Cluster::up();
    cluster.deploy("guestbook");
    cluster.rolled_out("guestbook-store");
    cluster.rolled_out("guestbook");
    let authority = format!("{}:8081", cluster.service_address("guestbook"));
    let page = eventually("the page", || http_get(&authority, "/").ok().filter(|(status, _)| *status == 200)).1;
    assert!(page.contains("The harbour&#39;s guestbook") || page.contains("The harbour's guestbook"), "{page}");
    assert!(page.contains("Sign before you sail."), "{page}");
    // What is empty is no entry, and is not kept.
    for form in ["", "entry=", "entry=+%0A", "text=hello"] {
        assert_eq!(http_post(&authority, "/", form).unwrap().0, 400, "{form:?}");
    }
    assert_eq!(http_post(&authority, "/", "entry=Ahoy+there").unwrap().0, 303);
    assert_eq!(http_get(&authority, "/entries").unwrap(), (200, "Ahoy there\n".to_owned()));
}

#[test]
fn tcp_goes_both_ways() {
    let cluster = Cluster::up();
    cluster.deploy("tcp-echo");
    cluster.rolled_out("tcp-echo");
    let authority = format!("{}:7007", cluster.service_address("tcp-echo"));
    let bytes: Vec<u8> = (0..300_000_u32).map(|number| (number % 251) as u8).collect();
    assert_eq!(tcp_echo(&authority, &bytes).unwrap(), bytes);
}

#[test]
fn a_batch_pod_computes_and_ends() {
    let cluster = Cluster::up();
    cluster.deploy("batch");
    cluster.kubectl(&["wait", "--for=jsonpath={.status.phase}=Succeeded", "pod/batch", "--timeout=60s"]);
    assert_eq!(cluster.kubectl(&["logs", "batch"]), "348513 primes below 5000000\n");
    let pod = cluster.get(&["pod", "batch"]);
    let ended = &pod["status"]["containerStatuses"][0]["state"]["terminated"];
    assert_eq!((ended["exitCode"].as_i64(), ended["reason"].as_str()), (Some(0), Some("Completed")));
}

#[test]
fn node_ports_and_headless_services() {
    let cluster = Cluster::up();
    cluster.deploy("guestbook");
    cluster.apply(
        "apiVersion: v1\nkind: Service\nmetadata: {name: direct}\nspec:\n  clusterIP: None\n  selector: {app: guestbook, role: store}\n  ports: [{port: 8080}]\n",
    );
    // The front finds the store's pod itself, without a Service's address in between.
    cluster.kubectl(&["set", "env", "deployment/guestbook", "STORE=direct:8080"]);
    cluster.rolled_out("guestbook-store");
    cluster.rolled_out("guestbook");
    cluster.kubectl(&["patch", "service", "guestbook", "--patch", r#"{"spec":{"type":"NodePort"}}"#]);
    let port = &cluster.get(&["service", "guestbook"])["spec"]["ports"][0]["nodePort"];
    // The node's own address: the machine this runs on.
    let addresses = &cluster.get(&["nodes"])["items"][0]["status"]["addresses"];
    let internal = addresses.as_array().unwrap().iter().find(|address| address["type"] == "InternalIP").unwrap();
    let authority = format!("{}:{port}", internal["address"].as_str().unwrap());
    let page = eventually("the page", || http_get(&authority, "/").ok().filter(|(status, _)| *status == 200)).1;
    assert!(page.contains("Sign before you sail."), "{page}");
}

//! Namespaces at the test broker. Each is deleted when the thread of its test ends, however the test went: thousands of
//! forgotten queues fill the broker's memory, and a broker without memory takes no messages until it has some.

use std::cell::RefCell;
use std::thread;

use defender_bridge::broker::Topology;
use defender_bridge::broker::rabbitmq::{RabbitMq, Settings};
use uuid::Uuid;

/// The broker that `tests/run` provides.
pub fn rabbitmq_url() -> String {
    std::env::var("TEST_RABBITMQ_URL").expect("TEST_RABBITMQ_URL names a broker; tests/run provides one")
}

/// A link to the test broker in a namespace of its own; `name` is shown in the broker's list of connections.
pub fn rabbitmq_settings(name: &str, topology: &'static Topology) -> Settings {
    let settings = Settings {
        urls: vec![rabbitmq_url()],
        namespace: format!("test-{}", Uuid::now_v7().simple()),
        connection_name: name.to_owned(),
        topology,
    };
    USED.with_borrow_mut(|used| used.0.push(settings.clone()));
    settings
}

thread_local! {
    static USED: RefCell<Used> = const { RefCell::new(Used(Vec::new())) };
}

/// What a thread has used.
struct Used(Vec<Settings>);

impl Drop for Used {
    fn drop(&mut self) {
        let used = std::mem::take(&mut self.0);
        if used.is_empty() {
            return;
        }
        // On a thread of its own: this one's local values, which a runtime needs, are going.
        let tidied = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            for settings in used {
                if let Err(error) = runtime.block_on(RabbitMq::delete_namespace(&settings)) {
                    eprintln!("{} is left behind: {error}", settings.namespace);
                }
            }
        });
        let _ = tidied.join();
    }
}
